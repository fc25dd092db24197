use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plugin_runtime::{ClockGrant, Placement};

use super::*;

const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";

/// Files in `/fleet`, and variables.
#[derive(Default)]
struct Outside {
    files: BTreeMap<&'static str, String>,
    variables: BTreeMap<&'static str, String>,
}

impl Outside {
    fn sample() -> Outside {
        let door = |id: &str| format!("HostName=h;DeviceId={id};SharedAccessKey={KEY}\n");
        let files = [
            ("devices.txt", format!("# doors\n\ndoor-7\n{}", door("door-8"))),
            (
                "wrong.txt",
                format!("door 7\nok\nHostName=h;DeviceId=d;SharedAccessKey=hush\nDeviceId=d;sharedAccessKey={KEY}\n"),
            ),
            ("keys/a.connstr", door("a")),
            ("keys/b.connstr", door("b")),
            ("keys/notes.txt", "not for us".to_owned()),
            ("ids.txt", "gate-1\ngate-2\n".to_owned()),
            ("empty.txt", "# being written\n".to_owned()),
            ("token.txt", "hush-hush\n".to_owned()),
        ];
        let variables = [("DOOR", door("door-9")), ("TOKEN", "hush-env".to_owned())];
        Outside { files: files.into(), variables: variables.into() }
    }

    fn read(&self, text: &str) -> (Result<FleetConfig, Vec<Mistake>>, Vec<String>) {
        let name = |path: &Path| path.strip_prefix("/fleet").ok().and_then(Path::to_str).unwrap_or_default().to_owned();
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let read_file = |path: &Path| self.files.get(&*name(path)).cloned().ok_or_else(missing);
        let list_folder = |path: &Path| -> io::Result<Vec<PathBuf>> {
            let prefix = format!("{}/", name(path));
            let files = self.files.keys().filter(|file| file.starts_with(&prefix));
            let files: Vec<_> = files.map(|file| Path::new("/fleet").join(file)).collect();
            if files.is_empty() { Err(missing()) } else { Ok(files) }
        };
        let variable = |name: &str| self.variables.get(name).cloned();
        let sources = Sources {
            base: Path::new("/fleet"),
            read_file: &read_file,
            list_folder: &list_folder,
            variable: &variable,
            seen: Default::default(),
        };
        let config = read(text, &sources);
        let seen = sources.seen.into_inner();
        (config, seen.iter().map(|path| name(path)).collect())
    }
}

fn config(text: &str) -> FleetConfig {
    let (config, _) = Outside::sample().read(text);
    config.unwrap_or_else(|mistakes| panic!("{text}: {mistakes:#?}"))
}

/// One mistake each, unless there is a `|` between several.
fn check_mistakes(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let (config, _) = Outside::sample().read(text);
        let mistakes = config.map(|_| ()).expect_err(text);
        let told: Vec<_> = mistakes.iter().map(Mistake::to_string).collect();
        let all = told.join(" | ");
        let expected: Vec<_> = expected.split(" | ").collect();
        assert_eq!(told.len(), expected.len(), "{text}\n{all}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{text}\n{told}\n  should begin with\n{expected}");
        }
        assert!(!all.contains("hush") && !all.contains(KEY), "a secret is shown: {all}");
    }
}

#[test]
fn nothing_is_the_default() {
    for text in ["", "# nothing\n", "[host]\n[limits]\n[plugins]\n"] {
        let config = config(text);
        assert_eq!((config.host, config.limits), (HostSection::default(), HostLimits::default()), "{text}");
        assert!(config.devices.is_empty() && config.plugins.is_empty() && config.remarks.is_empty(), "{text}");
    }
}

#[test]
fn devices_come_from_everywhere_and_connection_strings_join_ids() {
    let text = r#"
        [devices]
        ids = ["a", "gate"]
        pattern = "door-{7..9}"
        file = "devices.txt"
        folder = "keys"
        env = "DOOR"
    "#;
    let (config, seen) = Outside::sample().read(text);
    let devices = config.expect("a configuration").devices;
    let shown = devices.iter().map(|(id, connection)| format!("{id}{}", if connection.is_some() { "*" } else { "" }));
    assert_eq!(shown.collect::<Vec<_>>(), ["a*", "b*", "door-7", "door-8*", "door-9*", "gate"]);
    assert_eq!(seen, ["devices.txt", "keys", "keys/a.connstr", "keys/b.connstr"]);

    let several = config_devices("[[devices]]\npattern = [\"a-{1..2}\", \"b-{1..2}\"]\n[[devices]]\nids = \"c\"\n");
    assert_eq!(several, ["a-1", "a-2", "b-1", "b-2", "c"]);
}

fn config_devices(text: &str) -> Vec<String> {
    config(text).devices.keys().map(ToString::to_string).collect()
}

#[test]
fn plugins_have_places_settings_grants_and_limits() {
    let config = config(
        r#"
        [plugins.lamp]

        [plugins.lock-door]
        devices = ["door-*", "gate-{01..02}"]
        devices-file = "ids.txt"
        config = { building = "43", floors = 3, ratio = 1.5, hex = 0x10, on = true, token = { file = "token.txt" } }

        [plugins.lock-door.grants]
        environment = { TZ = "UTC", TOKEN = { env = "TOKEN" } }
        addresses = ["10.0.0.0/8:443"]
        folder = "data/plugins"
        clock = "coarse"
        randomness = true
        peers = ["lamp-*", "bell"]

        [plugins.lock-door.limits]
        call-time = "2s"
        memory = "16MiB"
        "#,
    );
    let plan = |name: &str| config.plugins.get(name).expect("a plan");
    assert_eq!(*plan("lamp"), Default::default());
    assert_eq!(config.positions.get("lamp"), Some(&Position { line: 2, column: 18 }));
    let lock_door = plan("lock-door");
    let Placement::On { patterns, devices } = &lock_door.placement else { panic!("everywhere") };
    assert_eq!(patterns.iter().map(|pattern| pattern.as_str()).collect::<Vec<_>>(), ["door-*"]);
    let ids: Vec<_> = devices.iter().map(DeviceId::as_str).collect();
    assert_eq!(ids, ["gate-01", "gate-02", "gate-1", "gate-2"]);
    let terms = &lock_door.terms;
    let pairs = |settings: &BTreeMap<String, String>| {
        settings.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    let expected = ["building=43", "floors=3", "hex=16", "on=true", "ratio=1.5", "token=hush-hush"];
    assert_eq!(pairs(&terms.config), expected);
    assert_eq!(pairs(&terms.grants.environment), ["TOKEN=hush-env", "TZ=UTC"]);
    assert_eq!((terms.grants.addresses.len(), terms.grants.clock), (1, ClockGrant::Coarse));
    assert!(terms.grants.randomness);
    assert_eq!(terms.grants.peers.iter().map(|pattern| pattern.as_str()).collect::<Vec<_>>(), ["lamp-*", "bell"]);
    assert_eq!(terms.grants.folder.as_deref(), Some(Path::new("/fleet/data/plugins")));
    assert_eq!((terms.limits.call_time, terms.limits.memory), (Some(Duration::from_secs(2)), Some(16 << 20)));
}

#[test]
fn host_settings_are_those_of_flags() {
    let host =
        config("[host]\nplugins = \"p\"\nadmin = \"127.0.0.1:1\"\nhttps = \"[::1]:2\"\nmqtt = \"0.0.0.0:3\"\ncertificates = \"c\"\n").host;
    assert_eq!(host.plugins.as_deref(), Some(Path::new("/fleet/p")));
    assert_eq!(host.certificates.as_deref(), Some(Path::new("/fleet/c")));
    let addresses = [host.admin, host.https, host.mqtt].map(|address| address.map(|address| address.to_string()));
    assert_eq!(addresses.map(Option::unwrap_or_default), ["127.0.0.1:1", "[::1]:2", "0.0.0.0:3"]);
    for (text, expected) in [
        ("[host]\ntier = \"S1\"\nunits = 3\n", Some("S1 with 3 units")),
        ("[host]\ntier = \"f1\"\n", Some("F1 with 1 unit")),
        ("[host]\n", None),
    ] {
        assert_eq!(config(text).host.tier.map(|tier| tier.to_string()).as_deref(), expected, "{text}");
    }
}

/// Each one differs from its default, so that none is left out or mixed up.
#[test]
fn every_limit_can_be_set() {
    let config = config(
        r#"
        [limits]
        call-time = "1s"
        memory = "2MiB"
        instances = 3
        calls-in-flight = 4
        component-size = "5MiB"
        mailbox = 6
        method-expiry = "7s"
        twin-wait = "8s"
        idle = "9s"
        telemetry-queue = "10KiB"
        telemetry-window = 11
        report-timeout = "12s"
        retry = { first = "13s", cap = "14s" }
        failures-before-pause = 15
        pause = { first = "16s", cap = "17s" }
        restart = { first = "20s", cap = "21s" }
        inbox = 22
        message-tries = 23
        failures-before-quarantine = 18
        [limits.calls]
        log-line = "101B"
        log-lines = 102
        state = "103KiB"
        timers = 104
        timer-payload = "5KiB"
        timer-ahead = "106d"
        name = "107B"
        argument = "108KiB"
        random = "109B"
        handles = 110
        files = 111
        lookups = 112
        peer-messages = 113
        peer-bytes = "114B"
        "#,
    );
    let HostLimits { runtime, actors, instances } = config.limits;
    assert_eq!(instances, Some(3));
    let s = Duration::from_secs;
    assert_eq!(
        runtime,
        plugin_runtime::RuntimeSettings {
            call_time_limit: s(1),
            memory_limit: 2 << 20,
            max_resident: plugin_runtime::RuntimeSettings::default().max_resident,
            max_in_flight: 4,
            max_component_size: 5 << 20,
            calls: plugin_runtime::CallLimits {
                log_line: 101,
                log_lines: 102,
                state: 103 << 10,
                timers: 104,
                timer_payload: 5 << 10,
                timer_ahead: s(106 * 86_400),
                name: 107,
                argument: 108 << 10,
                random: 109,
                handles: 110,
                files: 111,
                lookups: 112,
                peer_messages: 113,
                peer_bytes: 114,
            },
        }
    );
    let backoff = |first, cap| device_actors::Backoff { first: s(first), cap: s(cap) };
    assert_eq!(
        actors,
        device_actors::Limits {
            mailbox: 6,
            method_expiry: s(7),
            twin_wait: s(8),
            idle: s(9),
            telemetry_bytes: 10 << 10,
            telemetry_window: 11,
            report_timeout: s(12),
            retry: backoff(13, 14),
            failures_in_a_row: 15,
            pause: backoff(16, 17),
            restart: backoff(20, 21),
            inbox: 22,
            message_tries: 23,
            quarantine_after: 18,
        }
    );
}

#[test]
fn mistakes_in_the_document() {
    check_mistakes(&[
        ("[host\n", "1:6: this is not TOML: "),
        ("x = \n", "1:"),
        ("[hosts]\n", "1:2: unknown key; did you mean host?"),
        ("colour = 1\n", "1:1: unknown key; there are devices, host, limits, plugins"),
        ("host = 1\n", "1:8: host: expected a table"),
        (
            "[host]\nport = 1\n",
            "2:1: unknown key in host; there are admin, certificates, https, mqtt, plugins, tier, units",
        ),
        ("[host]\nadmin = \"localhost:1\"\n", "2:9: host.admin: expected an IP address with a port"),
        ("[host]\nplugins = 1\n", "2:11: host.plugins: expected a text in quotes"),
        ("[host]\ntier = \"B1\"\n", "2:8: host.tier: expected \"F1\", \"S1\", \"S2\" or \"S3\""),
        ("[host]\ntier = \"F1\"\nunits = 2\n", "3:9: host.units: a hub of the tier F1 has 1 to 1 units"),
        ("[host]\nunits = 2\n", "2:9: host.units: units are of a tier; add tier = \"S1\""),
    ]);
}

#[test]
fn mistakes_in_devices() {
    check_mistakes(&[
        ("devices = 1\n", "1:11: devices: expected a table"),
        ("devices = [1, {}]\n", "1:12: devices: expected a table | 1:15: devices: no device is named; give ids"),
        ("[devices]\n", "1:1: devices: no device is named; give ids, pattern, file, folder or env"),
        (
            "[devices]\nid = \"a\"\n",
            "1:1: devices: no device is named | 2:1: unknown key in devices; did you mean ids?",
        ),
        (
            "[devices]\nids = [1, \"a b\"]\n",
            "2:8: devices.ids: expected a text | 2:11: devices.ids: a device id contains ' '",
        ),
        ("[devices]\npattern = \"door-{1..}\"\n", "2:11: devices.pattern: in braces stands a range"),
        ("[devices]\npattern = \"{000001..100001}\"\n", "2:11: devices.pattern: the pattern stands for 100001 devices"),
        ("[devices]\nfile = \"empty.txt\"\n", "1:1: devices: no device is named in what is listed here"),
        ("[devices]\nfile = \"none.txt\"\n", "2:8: devices.file: none.txt cannot be read: "),
        ("[devices]\nfolder = \"none\"\n", "2:10: devices.folder: none cannot be read: "),
        ("[devices]\nenv = \"NONE\"\n", "2:7: devices.env: the variable NONE is not set"),
        (
            "[devices]\nfile = \"wrong.txt\"\n",
            "2:8: devices.file: wrong.txt:1: a device id contains ' ' | 2:8: devices.file: wrong.txt:3: SharedAccessKey is \
             wrong | 2:8: devices.file: wrong.txt:4: the connection string has no HostName",
        ),
        (
            "[devices]\nids = \"HostName=h;DeviceId=d;SharedAccessKey=hush\"\n",
            "2:30: a key stands here, which this file is not private enough for; put",
        ),
        ("# SharedAccessKey=hush\n", "1:3: a key stands here"),
        ("SharedAccessKey = \"hush\"\n", "1:1: a key stands here | 1:1: unknown key"),
    ]);
    let mut outside = Outside::sample();
    let other = outside.variables["DOOR"].replace("HostName=h", "HostName=other");
    outside.variables.insert("OTHER", other);
    let (config, _) = outside.read("[devices]\nenv = [\"DOOR\", \"DOOR\", \"OTHER\"]\n");
    let mistakes = config.map(|_| ()).expect_err("two strings");
    let told: Vec<_> = mistakes.iter().map(Mistake::to_string).collect();
    assert_eq!(told, ["2:24: devices.env: door-9 has two connection strings that differ; remove one"]);
}

#[test]
fn mistakes_in_plugins() {
    check_mistakes(&[
        ("[plugins.Door]\n", "1:10: plugins.Door: the plugin name \"Door\" contains 'D'"),
        ("plugins.door = 1\n", "1:16: plugins.door: expected a table"),
        ("[plugins.p]\ndevice = \"*\"\n", "2:1: unknown key in plugins.p; did you mean devices?"),
        ("[plugins.p]\ndevices = []\n", "2:11: plugins.p.devices: the list is empty"),
        (
            "[plugins.p]\ndevices = [\"a/*\", \"\"]\n",
            "2:12: plugins.p.devices: no device can have such an id | 2:19: plugins.p.devices: a pattern",
        ),
        ("[plugins.p]\ndevices = \"a{1..\"\n", "2:11: plugins.p.devices: a brace is not closed"),
        (
            "[plugins.p]\ndevices-file = [\"none.txt\", \"wrong.txt\"]\n",
            "2:17: plugins.p.devices-file: none.txt cannot | 2:29: plugins.p.devices-file: wrong.txt:1: a device id contains ' ' | 2:29: plugins.p.devices-file: wrong.txt:3: a device id contains ';' | 2:29: plugins.p.devices-file: wrong.txt:4: a device id contains ';'",
        ),
        (
            "[plugins.p]\nconfig = { a = [1], b = 1979-05-27 }\n",
            "2:16: plugins.p.config.a: expected a text, a number | 2:25: plugins.p.config.b: expected a text",
        ),
        ("[plugins.p]\nconfig = { a = { file = \"none\" } }\n", "2:25: plugins.p.config.a.file: none cannot be read"),
        ("[plugins.p]\nconfig = { a = { env = \"NONE\" } }\n", "2:24: plugins.p.config.a.env: the variable NONE"),
        (
            "[plugins.p]\nconfig = { a = { path = \"x\" } }\n",
            "2:16: plugins.p.config.a: expected { file | 2:18: unknown key in plugins.p.config.a; there are env, file",
        ),
        (
            "[plugins.p]\nconfig = { a = { env = \"TOKEN\", file = \"token.txt\" } }\n",
            "2:16: plugins.p.config.a: expected { file",
        ),
        ("[plugins.p]\nconfig = { a = 99999999999999999999 }\n", "2:16: plugins.p.config.a: the number is too large"),
        (
            "[plugins.p.grants]\nenvironment = { \"A=B\" = \"\", C = \"\\u0000\" }\n",
            "2:17: plugins.p.grants.environment.A=B: the name of | 2:33: plugins.p.grants.environment.C: the value",
        ),
        (
            "[plugins.p.grants]\naddresses = [\"example.com:443\"]\n",
            "2:14: plugins.p.grants.addresses: expected ADDRESS:PORT",
        ),
        (
            "[plugins.p.grants]\npeers = [\"lamp-{1..9}\", \"\"]\n",
            "2:10: plugins.p.grants.peers: a pattern has * | 2:25: plugins.p.grants.peers: a pattern for device ids has",
        ),
        (
            "[plugins.p.grants]\nclock = \"hush\"\nrandomness = \"yes\"\nnet = 1\n",
            "2:9: plugins.p.grants.clock: expected \"call-start\" | 3:14: plugins.p.grants.randomness: expected true or false | 4:1: unknown key in plugins.p.grants; there are addresses",
        ),
        (
            "[plugins.p.limits]\ncall-time = \"6s\"\nmemory = \"65MiB\"\n",
            "2:13: plugins.p.limits.call-time: expected from 10ms to 5s | 3:10: plugins.p.limits.memory: expected from 64KiB to 64MiB",
        ),
    ]);
    let long = format!("[plugins.p.config]\na = \"{}\"\n", "x".repeat(300 << 10));
    check_mistakes(&[(&long, "1:1: plugins.p.config: these are 307201 bytes")]);
    let patterns: Vec<_> = (0..65).map(|number| format!("\"a{number}*\"")).collect();
    let many = format!("[plugins.p]\ndevices = [{}]\n", patterns.join(", "));
    check_mistakes(&[(&many, "2:11: plugins.p.devices: there may be 64 patterns")]);
}

#[test]
fn mistakes_in_limits() {
    check_mistakes(&[
        ("limits = []\n", "1:10: limits: expected a table"),
        ("[limits]\nidel = \"5s\"\n", "2:1: unknown key in limits; did you mean idle?"),
        ("[limits]\nidle = 5\n", "2:8: limits.idle: expected a text with a unit, as \"5s\""),
        (
            "[limits]\nidle = \"5\"\n",
            "2:8: limits.idle: expected a whole number with a unit, as \"5s\"; units are ms, s, m, h and d",
        ),
        ("[limits]\nmemory = \"64MB\"\n", "2:10: limits.memory: expected a whole number with a unit, as \"64KiB\""),
        ("[limits]\nmemory = \"2GiB\"\n", "2:10: limits.memory: expected from 64KiB to 1GiB"),
        ("[limits]\nmailbox = 0\n", "2:11: limits.mailbox: expected a number from 1 to 10000"),
        ("[limits]\nmailbox = -1\n", "2:11: limits.mailbox: expected a number from 1 to 10000"),
        ("[limits]\nmailbox = \"64\"\n", "2:11: limits.mailbox: expected a whole number"),
        ("[limits]\nmailbox = 1.5\n", "2:11: limits.mailbox: expected a whole number"),
        ("[limits]\ncall-time = \"301s\"\n", "2:13: limits.call-time: expected from 10ms to 5m"),
        ("[limits]\nretry = { first = \"2m\" }\n", "2:9: limits.retry: first is more than cap"),
        ("[limits]\npause = \"1s\"\n", "2:9: limits.pause: expected a table"),
        ("[limits.calls]\nstates = \"1KiB\"\n", "2:1: unknown key in limits.calls; did you mean state?"),
    ]);
}

#[test]
fn all_mistakes_are_told_at_once_and_in_order() {
    check_mistakes(&[
        (
            "[plugins.p]\ndevices = 1\n[limits]\nidle = \"x\"\nnone = 1\n[host]\nadmin = \"here\"\n[devices]\nids = \"a b\"\n",
            "2:11: plugins.p.devices: | 4:8: limits.idle: | 5:1: unknown key in limits | 7:9: host.admin: | 9:7: devices.ids: ",
        ),
        ("[limits]\nidle = 5s\nmailbox = 0\n", "2:8: this is not TOML: | 3:11: limits.mailbox: expected a number"),
    ]);
}

#[test]
fn what_is_odd_is_remarked() {
    let text =
        "[devices]\npattern = \"door-{1..9}\"\n[plugins.p]\ndevices = [\"dor-*\", \"door-*\", \"gate-{1..2}\"]\n";
    let remarks: Vec<_> = config(text).remarks.iter().map(Mistake::to_string).collect();
    let expected = "plugins.p.devices: matches none of the devices in this file";
    assert_eq!(remarks, [format!("4:12: {expected}"), format!("4:31: {expected}")]);
    assert!(config("[plugins.p]\ndevices = \"dor-*\"\n").remarks.is_empty(), "the devices are not known");
}

#[test]
fn plugins_that_are_not_there_are_remarked() {
    let config = config("[plugins.lock-door]\n[plugins.lok-door]\n[plugins.lamp]\n");
    let absent = config.absent_plugins(&["lock-door".to_owned()].into());
    let told: Vec<_> = absent.iter().map(Mistake::to_string).collect();
    let text = |name: &str| format!("plugins.{name}: there is no {name}.wasm in the plugin directory");
    let expected = [format!("3:10: {}", text("lamp")), format!("2:10: {}; did you mean lock-door?", text("lok-door"))];
    assert_eq!(told, expected);
}

/// What the README shows is understood, and its limits are the defaults.
#[test]
fn the_example_of_the_readme_is_right() {
    let readme = include_str!("../../../../README.md");
    let example = readme.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```")).expect("an example").0;
    let mut outside = Outside::sample();
    outside.files.insert("connections/a.connstr", outside.files["keys/a.connstr"].clone());
    outside.files.insert("tagged.txt", "gate-east\n".to_owned());
    outside.variables.insert("HALL_CONNSTR", outside.variables["DOOR"].clone());
    outside.variables.extend([("ACCOUNT", "hush".to_owned()), ("DOOR_API_KEY", "hush".to_owned())]);
    let config = outside.read(example).0.unwrap_or_else(|mistakes| panic!("{mistakes:#?}"));
    assert_eq!((config.limits, config.devices.len()), (HostLimits::default(), 1006));
    assert_eq!((config.plugins.len(), config.remarks), (1, Vec::new()));
}
