//! The environment that children get.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The few variables of the caller's environment that a build may depend on.
///
/// Under `cargo run` and `cargo test` the environment is full of that cargo's own settings (RUSTUP_TOOLCHAIN,
/// RUSTFLAGS, CARGO_TARGET_DIR, RUSTC_WRAPPER), and people export some of them for their own builds. A guest is another
/// build for another target, so everything but these is left out.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostEnv {
    variables: BTreeMap<OsString, OsString>,
}

impl HostEnv {
    /// Keeps what a build may see of `variables`, usually `std::env::vars_os()`.
    pub(crate) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> HostEnv {
        let kept = |name: &OsStr| KEPT.iter().any(|kept| name == OsStr::new(kept));
        HostEnv { variables: variables.into_iter().filter(|(name, _)| kept(name)).collect() }
    }

    /// `program`, to be run in `folder` with these variables and no others.
    pub(super) fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).env_clear().envs(&self.variables);
        command
    }

    /// Where `program` is on `PATH`.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        let path = self.variables.get(OsStr::new("PATH"))?;
        std::env::split_paths(path).map(|folder| folder.join(program)).find(|file| is_executable(file))
    }

    /// `PATH` with one folder before and one after it.
    pub(super) fn path_between(&self, first: &Path, last: &Path) -> OsString {
        let mut path = first.as_os_str().to_owned();
        for more in [self.variables.get(OsStr::new("PATH")).map(OsString::as_os_str), Some(last.as_os_str())] {
            if let Some(more) = more.filter(|more| !more.is_empty()) {
                path.push(":");
                path.push(more);
            }
        }
        path
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Where programs, caches and temporary files are, and how to reach the network from here.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_DIST_SERVER",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "CARGO_HTTP_CAINFO",
    "CARGO_HTTP_PROXY",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn host_env(variables: &[(&str, &str)]) -> HostEnv {
        HostEnv::new(variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn children_see_only_what_a_build_may_depend_on() {
        let host_env = host_env(&[
            ("CARGO_TARGET_DIR", "/elsewhere"),
            ("HOME", "/home/ann"),
            ("PATH", "/usr/bin"),
            ("RUSTC_WRAPPER", "nonsense"),
            ("RUSTFLAGS", "--nonsense"),
            ("RUSTUP_TOOLCHAIN", "nonsense"),
            ("https_proxy", "http://proxy:3128"),
        ]);
        let command = host_env.command(Path::new("cargo"), Path::new("/plugins"));
        let names: Vec<_> = command.get_envs().filter_map(|(name, value)| value.and(name.to_str())).collect();
        assert_eq!(names, ["HOME", "PATH", "https_proxy"]);
        assert_eq!(command.get_current_dir(), Some(Path::new("/plugins")));
    }

    #[test]
    fn path_grows_at_both_ends() {
        let between = |variables| host_env(variables).path_between(Path::new("/tools"), Path::new("/usr/sbin"));
        assert_eq!(between(&[("PATH", "/usr/bin:/bin")]), "/tools:/usr/bin:/bin:/usr/sbin");
        assert_eq!(between(&[]), "/tools:/usr/sbin");
    }

    #[test]
    fn programs_are_found_on_path_alone() {
        assert!(host_env(&[("PATH", "/nowhere:/bin:/usr/bin")]).find("sh").is_some());
        assert_eq!(host_env(&[("PATH", "/nowhere")]).find("sh"), None);
        assert_eq!(host_env(&[]).find("sh"), None);
    }
}
