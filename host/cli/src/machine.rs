//! What the machine has to give, and how many plugin instances that is. Reads `/proc` and the control group.

use std::fs;
use std::path::Path;

use anyhow::bail;
use plugin_runtime::{Machine, RuntimeSettings};

/// What Linux tells of this process and its machine; `None` on a system that does not tell.
pub(crate) fn machine() -> Option<Machine> {
    let max_maps = fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    let maps = fs::read_to_string("/proc/self/maps").ok()?.lines().count() as u64;
    let available = available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let memory = group_limits().into_iter().fold(available, u64::min);
    Some(Machine { max_maps, maps, memory })
}

/// How many instances there may be: as many as `asked` for, else as many as suit the machine.
///
/// # Errors
/// If the memory maps do not suffice for those asked for.
pub(crate) fn resident_cap(
    asked: Option<u32>,
    machine: Option<Machine>,
    settings: &RuntimeSettings,
) -> anyhow::Result<u32> {
    let Some(machine) = machine else { return Ok(asked.unwrap_or(settings.max_resident)) };
    let Some(asked) = asked else { return Ok(machine.resident_cap(settings)) };
    let fit = machine.resident_that_fit(settings);
    if asked > fit {
        bail!(
            "{asked} plugin instances do not fit: they may take {} memory maps, this process may have {}, has {} and \
             keeps a quarter of the rest; {fit} fit\nhint: raise the limit with `sysctl -w vm.max_map_count={}`, or lower \
             --max-instances",
            machine.maps_of(asked, settings),
            machine.max_maps,
            machine.maps,
            machine.max_maps_for(asked, settings),
        );
    }
    Ok(asked)
}

/// Memory that can be had without pushing anything out, from `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The memory limits of this process's control group and those above it (version 2), in bytes.
fn group_limits() -> Vec<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(group) = unified_group(&groups) else { return Vec::new() };
    let folder = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'));
    let folders = folder.ancestors().take_while(|folder| folder.starts_with("/sys/fs/cgroup"));
    folders.filter_map(|folder| limit(&fs::read_to_string(folder.join("memory.max")).ok()?)).collect()
}

/// The line of the unified hierarchy in `/proc/self/cgroup`.
fn unified_group(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// What `memory.max` says, unless that is `max`.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_writes_is_understood() {
        let meminfo = "MemTotal:       24683104 kB\nMemFree:         1 kB\nMemAvailable:   23472012 kB\n";
        assert_eq!(available(meminfo), Some(23_472_012 * 1024));
        for strange in ["", "MemAvailable: many kB", "MemAvailable: 1 MB"] {
            assert_eq!(available(strange), None, "{strange}");
        }
        assert_eq!(
            unified_group("4:memory:/old\n0::/system.slice/latch.service\n"),
            Some("/system.slice/latch.service")
        );
        assert_eq!(unified_group("4:memory:/old\n"), None);
        assert_eq!((limit("536870912\n"), limit("max\n")), (Some(512 << 20), None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_says_what_it_has() {
        let machine = machine().expect("Linux tells");
        assert!(machine.max_maps > machine.maps && machine.maps > 0 && machine.memory > 0, "{machine:?}");
    }

    #[test]
    fn the_flag_wins_as_far_as_the_maps_reach() {
        let settings = RuntimeSettings::default();
        let cap = |asked, machine| resident_cap(asked, machine, &settings);
        let server = Some(Machine { max_maps: 65_530, maps: 130, memory: 8 << 30 });
        assert_eq!(cap(None, None).expect("no limit known"), 256);
        assert_eq!(cap(Some(8192), None).expect("no limit known"), 8192);
        assert_eq!(cap(None, server).expect("derived"), 682);
        assert_eq!(cap(Some(4840), server).expect("it fits"), 4840);
        assert_eq!(
            cap(Some(8192), server).expect_err("too many").to_string(),
            "8192 plugin instances do not fit: they may take 82570 memory maps, this process may have 65530, has 130 and \
             keeps a quarter of the rest; 4840 fit\nhint: raise the limit with `sysctl -w vm.max_map_count=110226`, or \
             lower --max-instances"
        );
    }
}
