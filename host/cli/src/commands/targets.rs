//! From options and files to a job's targets.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::targets::{Exclusion, JobTargets, List, ListDigest, ListPart, MAX_INLINE, MAX_LISTED};
use iothub_service::ServiceClient;

use crate::args::TargetArgs;
use crate::output::say;
use crate::progress;

/// Mistakes and repetitions of a list that are shown; a list can be wrong from its first line to its last.
const SHOWN: usize = 20;
/// Devices of a list that are sent together, and their bytes, about.
const PART_DEVICES: usize = 10_000;
const PART_BYTES: usize = 512 * 1024;

/// What a job is for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Chosen {
    pub(super) condition: String,
    pub(super) targets: Option<JobTargets>,
    /// In order of their texts, if they are too many for the job itself.
    pub(super) devices: Vec<Address>,
    pub(super) excluded: Vec<Address>,
}

impl Chosen {
    pub(super) fn read(args: &TargetArgs) -> anyhow::Result<Chosen> {
        let is_stdin = |file: &Option<std::path::PathBuf>| file.as_deref() == Some(Path::new("-"));
        if is_stdin(&args.list) && is_stdin(&args.exclude_list) {
            bail!("--list and --exclude-list cannot both be read from stdin");
        }
        let listed = args.list.as_deref().map(read_list).transpose()?;
        let excluded = args.exclude_list.as_deref().map(read_list).transpose()?;
        let mut chosen = Chosen { condition: args.query.clone().unwrap_or_else(|| "*".into()), ..Chosen::default() };
        let list = listed.map(|devices| place(devices, &mut chosen.devices));
        let exclude_list = excluded.map(|devices| place(devices, &mut chosen.excluded));
        let exclude = (args.exclude.is_some() || exclude_list.is_some())
            .then(|| Exclusion { condition: args.exclude.clone(), list: exclude_list });
        if list.is_some() || exclude.is_some() || args.continuous {
            chosen.targets = Some(JobTargets { list, exclude, continuous: args.continuous });
        }
        Ok(chosen)
    }

    /// Send what the job itself does not hold, if there is any; then it may begin.
    pub(super) async fn send(&self, service: &ServiceClient, job: &JobId) -> anyhow::Result<()> {
        if self.devices.is_empty() && self.excluded.is_empty() {
            return Ok(());
        }
        let bar = progress::count_bar("listed", (self.devices.len() + self.excluded.len()) as u64);
        let mut digest = ListDigest::new();
        for (devices, is_excluded) in [(&self.devices, false), (&self.excluded, true)] {
            for part in parts(devices) {
                part.iter().for_each(|device| digest.push(&device.to_string(), is_excluded));
                let devices = part.to_vec();
                let part = match is_excluded {
                    false => ListPart { devices, excluded: Vec::new() },
                    true => ListPart { devices: Vec::new(), excluded: devices },
                };
                service.extend_list(job, &part).await?;
                bar.inc((part.devices.len() + part.excluded.len()) as u64);
            }
        }
        service.complete_list(job, &digest.finish()).await?;
        bar.finish_and_clear();
        Ok(())
    }
}

/// Few go with the job, many after it.
fn place(devices: Vec<Address>, after: &mut Vec<Address>) -> List {
    if devices.len() <= MAX_INLINE {
        return List::Inline(devices);
    }
    *after = devices;
    List::Uploaded
}

/// A list in parts that go in one request each.
pub(super) fn parts(devices: &[Address]) -> impl Iterator<Item = &[Address]> {
    let mut rest = devices;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |device: &&Address| {
            bytes += device.device().as_str().len() + device.module().map_or(0, |module| module.as_str().len());
            bytes <= PART_BYTES
        };
        let count = rest.iter().take(PART_DEVICES).take_while(fits).count().max(1).min(rest.len());
        let (part, left) = rest.split_at(count);
        rest = left;
        (!part.is_empty()).then_some(part)
    })
}

/// The devices and modules that a file lists, in order of their texts.
fn read_list(file: &Path) -> anyhow::Result<Vec<Address>> {
    let (name, text) = match file == Path::new("-") {
        true => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).context("cannot read the list from stdin")?;
            ("stdin".to_owned(), text)
        }
        false => {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            (file.display().to_string(), text)
        }
    };
    let Lines { devices, mistakes, repeated, heading } = parse(&text);
    let shown = |notes: &[String], separator: &str| {
        let shown = notes.iter().take(SHOWN).map(|note| format!("{name}:{note}")).collect::<Vec<_>>().join(separator);
        let left = notes.len().saturating_sub(SHOWN);
        if left == 0 { shown } else { format!("{shown}{separator}and {left} more") }
    };
    if !mistakes.is_empty() {
        bail!("{}", shown(&mistakes, "\n"));
    }
    if let Some(heading) = heading {
        say(&format!("{name}: the first line is taken for a heading: {heading}"));
    }
    if !repeated.is_empty() {
        say(&format!(
            "{} devices of {name} are there again and count once:\n{}",
            repeated.len(),
            shown(&repeated, "\n")
        ));
    }
    if devices.is_empty() {
        bail!("{name} lists no device");
    }
    if devices.len() as u64 > MAX_LISTED {
        bail!("{name} lists {} devices, and a job has at most {MAX_LISTED}: make several jobs of it", devices.len());
    }
    Ok(devices)
}

/// What stands in a list.
#[derive(Debug, Default, PartialEq)]
struct Lines {
    /// In order of their texts, each once.
    devices: Vec<Address>,
    /// Each begins with its line's number, from 1.
    mistakes: Vec<String>,
    repeated: Vec<String>,
    heading: Option<String>,
}

fn parse(text: &str) -> Lines {
    let mut lines = Lines::default();
    let mut seen: HashMap<Address, usize> = HashMap::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut is_first = true;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let id = first_column(line);
        if std::mem::take(&mut is_first) && is_heading(line, &id) {
            lines.heading = Some(line.to_owned());
            continue;
        }
        match Address::parse(&id) {
            Err(error) => lines.mistakes.push(format!("{number}: {error}")),
            Ok(address) => match seen.get(&address) {
                Some(first) => lines.repeated.push(format!("{number}: {address}, as in line {first}")),
                None => drop(seen.insert(address, number)),
            },
        }
    }
    lines.devices = seen.into_keys().collect();
    lines.devices.sort_by_cached_key(Address::to_string);
    lines
}

/// An id that has commas itself stands in quotation marks, as CSV has it.
fn first_column(line: &str) -> String {
    match line.strip_prefix('"') {
        Some(quoted) => {
            let mut id = String::new();
            let mut rest = quoted.chars().peekable();
            while let Some(next) = rest.next() {
                if next == '"' && rest.next_if_eq(&'"').is_none() {
                    break;
                }
                id.push(next);
            }
            id
        }
        None => line.split([',', ';', '\t']).next().unwrap_or_default().trim().to_owned(),
    }
}

/// Whether the first line names columns. `device` alone may be a device.
fn is_heading(line: &str, first: &str) -> bool {
    let is_of_many = line.contains([',', ';', '\t']);
    let names: &[&str] =
        if is_of_many { &["deviceid", "device_id", "device", "id"] } else { &["deviceid", "device_id"] };
    names.contains(&first.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| Address::parse(text).expect(text)).collect()
    }

    #[test]
    fn a_list_is_lines_of_ids_or_the_first_column_of_a_table() {
        for (text, expected, heading) in [
            ("b\na\n", vec!["a", "b"], None),
            ("\u{feff}# doors\r\n\r\n  a/m \r\na!\r\n", vec!["a!", "a/m"], None),
            ("deviceId,building\nd1,43\n\"d,2\",44\n", vec!["d,2", "d1"], Some("deviceId,building")),
            ("id;site\nx;1", vec!["x"], Some("id;site")),
            ("DeviceID\nx", vec!["x"], Some("DeviceID")),
            ("device\nid", vec!["device", "id"], None),
            ("a,1\ndeviceId,2", vec!["a", "deviceId"], None),
        ] {
            let lines = parse(text);
            assert_eq!((lines.devices, lines.heading.as_deref()), (addresses(&expected), heading), "{text}");
            assert_eq!((lines.mistakes.len(), lines.repeated.len()), (0, 0), "{text}");
        }
    }

    #[test]
    fn every_mistake_and_every_repetition_is_told_with_its_line() {
        let lines = parse("a\nb b\n# c\na\n/m\na/m\na,2\n");
        assert_eq!(lines.devices, addresses(&["a", "a/m"]));
        assert_eq!(lines.repeated, ["4: a, as in line 1", "7: a, as in line 1"]);
        let [first, second] = &lines.mistakes[..] else { panic!("{:?}", lines.mistakes) };
        assert!(first.starts_with("2: a device id contains ' '"), "{first}");
        assert!(second.starts_with("5: a device id is empty"), "{second}");
    }

    #[test]
    fn many_devices_go_in_parts() {
        let long = "x".repeat(100);
        let devices: Vec<_> = (0..25_000).map(|number| format!("{long}{number}")).collect();
        let devices = addresses(&devices.iter().map(String::as_str).collect::<Vec<_>>());
        let sizes: Vec<_> = parts(&devices).map(<[_]>::len).collect();
        assert!(sizes.iter().sum::<usize>() == 25_000 && sizes.iter().all(|size| *size < 5300), "{sizes:?}");
        assert_eq!(parts(&devices[..0]).count(), 0);
    }

    #[test]
    fn few_go_with_the_job_and_many_after_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let [few, many] = [("few", 3), ("many", MAX_INLINE + 1)].map(|(name, count)| {
            let path = folder.path().join(name);
            let text: String = (0..count).map(|number| format!("d{number}\n")).collect();
            fs::write(&path, text).expect("a file");
            path
        });
        let args = TargetArgs { list: Some(few.clone()), exclude: Some("tags.x = 1".into()), ..TargetArgs::default() };
        let chosen = Chosen::read(&args).expect("a list");
        let exclude = Some(Exclusion { condition: Some("tags.x = 1".into()), list: None });
        let list = Some(List::Inline(addresses(&["d0", "d1", "d2"])));
        assert_eq!(
            (chosen.condition.as_str(), chosen.targets),
            ("*", Some(JobTargets { list, exclude, continuous: false }))
        );
        let args = TargetArgs { query: Some("*".into()), exclude_list: Some(many), ..TargetArgs::default() };
        let chosen = Chosen::read(&args).expect("a list");
        let exclude = Some(Exclusion { condition: None, list: Some(List::Uploaded) });
        assert_eq!(
            (chosen.targets, chosen.excluded.len()),
            (Some(JobTargets { exclude, ..JobTargets::default() }), MAX_INLINE + 1)
        );
        fs::write(&few, "# nothing\n").expect("a file");
        let args = TargetArgs { list: Some(few), ..TargetArgs::default() };
        assert!(Chosen::read(&args).is_err_and(|error| error.to_string().contains("lists no device")));
    }
}
