use plugin_runtime::{CanaryRule, DeviceGlob, DeviceSelector, PinRule, Placement};

use super::*;

fn device(id: &str) -> DeviceId {
    DeviceId::parse(id).expect("an id")
}

fn hash(version: &str) -> Arc<str> {
    Arc::from(format!("{:0>64}", version.replace('.', "")))
}

fn offered(version: &str, is_loaded: bool) -> Offered {
    let plugin = Plugin {
        name: PluginName::parse("lock-door").expect("a name"),
        id: hash(version),
        hash: hash(version),
        label: Arc::from(version),
        methods: Vec::new(),
        watched: Vec::new(),
        has_messages: false,
        has_ticks: false,
        has_lifecycle: false,
        state_format: 0,
    };
    Offered {
        hash: hash(version),
        semver: Some(Arc::from(version)),
        label: Arc::from(version),
        plugin: is_loaded.then(|| Arc::new(plugin)),
        failed: None,
    }
}

/// 3.0.0 is the canary, 2.0.0 current, 1.1.0 was before, 1.0.0 is kept and 0.9.0 not loaded.
fn offers(percent: u8) -> Offers {
    let mut versions: Vec<_> = ["3.0.0", "2.0.0", "1.1.0", "1.0.0"].map(|version| offered(version, true)).into();
    versions.push(offered("0.9.0", false));
    let current = versions[1].plugin.clone().expect("loaded");
    let canary = CanaryRule { hash: hash("3.0.0"), percent, devices: DeviceSelector::all() };
    let offer = Offer {
        name: current.name.clone(),
        placement: Placement::Everywhere,
        current: current.clone(),
        versions,
        previous: Some(hash("1.1.0")),
        canary: Some(canary),
        pins: Vec::new(),
    };
    let lineup = Lineup { generation: 1, plugins: vec![current] };
    Offers { generation: 1, current: Arc::new(lineup), plugins: vec![offer] }
}

fn pattern(devices: &str) -> DeviceSelector {
    DeviceGlob::parse(devices).expect("a pattern").into()
}

fn pin(devices: &str, version: &str) -> PinRule {
    PinRule { hash: hash(version), devices: pattern(devices) }
}

fn twin(pin: Value) -> Map<String, Value> {
    Map::from_iter([("lock-door".to_owned(), pin)])
}

fn chosen(selection: &Selection) -> &str {
    &selection.lineup.plugins[0].label
}

fn report(selection: &Selection) -> (&str, &str) {
    let report = selection.reports["lock-door"].as_ref().expect("a report");
    (report["version"].as_str().expect("a version"), report["status"].as_str().expect("a status"))
}

#[test]
fn a_larger_share_contains_a_smaller_one() {
    let devices: Vec<_> = (0..1000).map(|number| device(&format!("door-{number:04}"))).collect();
    let mut before = BTreeSet::new();
    for percent in [1, 5, 20, 50, 100] {
        let offers = offers(percent);
        let runs = |id: &&DeviceId| chosen(&select(id, &offers, None, &Past::default())) == "3.0.0";
        let now: BTreeSet<_> = devices.iter().filter(runs).cloned().collect();
        assert!(before.is_subset(&now), "{percent}");
        let expected = usize::from(percent) * 10;
        assert!(now.len().abs_diff(expected) <= 30, "{percent}% of 1000 are {}", now.len());
        before = now;
    }
    assert_eq!(before.len(), 1000);
    let places = ["door-0001", "door-0002", "a"].map(|id| device(id).rollout_place().0);
    assert_eq!(places, [39, 90, 29], "a device keeps its place for ever");
}

#[test]
fn the_twins_pin_is_before_the_operators_before_the_canary_before_the_current_version() {
    let here = device("door-0001");
    let past = Past::default();
    let mut offers = offers(0);
    let run =
        |offers: &Offers, pins: Option<&Map<String, Value>>| chosen(&select(&here, offers, pins, &past)).to_owned();
    assert_eq!(run(&offers, None), "2.0.0");
    offers.plugins[0].canary.as_mut().expect("a canary").percent = 100;
    assert_eq!(run(&offers, None), "3.0.0");
    offers.plugins[0].pins = vec![pin("door-9*", "1.1.0")];
    assert_eq!(run(&offers, None), "3.0.0", "pinned elsewhere");
    offers.plugins[0].pins = vec![pin("door-00*", "1.0.0"), pin("*", "1.1.0")];
    assert_eq!(run(&offers, None), "1.0.0", "the first that matches");
    for pin in ["1.1.0", &hash("1.1.0"), &hash("1.1.0")[..63]] {
        assert_eq!(run(&offers, Some(&twin(json!(pin)))), "1.1.0", "{pin}");
    }
    offers.plugins[0].canary.as_mut().expect("a canary").devices = pattern("x*");
    offers.plugins[0].pins.clear();
    assert_eq!(run(&offers, None), "2.0.0", "not for this device");
}

#[test]
fn a_twins_pin_is_always_reported() {
    let (here, past, mut offers) = (device("door-0001"), Past::default(), offers(0));
    assert!(select(&here, &offers, None, &past).reports.is_empty(), "without one there is nothing to say");
    for (pin, expected) in [
        (json!("1.0.0"), ("1.0.0", "active")),
        (json!("2.0.0"), ("2.0.0", "active")),
        (json!("7.0.0"), ("2.0.0", "unknown-version")),
        (json!({"version": 1}), ("2.0.0", "unknown-version")),
    ] {
        assert_eq!(report(&select(&here, &offers, Some(&twin(pin.clone())), &past)), expected, "{pin}");
    }
    let other = Map::from_iter([("gone".to_owned(), json!("1.0.0"))]);
    let selection = select(&here, &offers, Some(&other), &past);
    assert_eq!(selection.reports["gone"].as_ref().expect("a report")["reason"], "no plugin gone runs here");

    let not_loaded = twin(json!("0.9.0"));
    let selection = select(&here, &offers, Some(&not_loaded), &past);
    assert_eq!((chosen(&selection), &selection.reports["lock-door"]), ("2.0.0", &None), "it is on its way");
    assert_eq!(selection.wanted.iter().map(|(_, hash)| hash.clone()).collect::<Vec<_>>(), [hash("0.9.0")]);
    offers.plugins[0].versions[4].failed = Some("damaged".into());
    assert_eq!(report(&select(&here, &offers, Some(&not_loaded), &past)), ("2.0.0", "unknown-version"));
}

#[test]
fn quarantine_beats_every_rule_until_the_rules_say_something_else() {
    let here = device("door-0001");
    let (mut past, offers) = (Past::default(), offers(100));
    let version = |label: &str| {
        let found = offers.plugins[0].versions.iter().find(|version| &*version.label == label);
        found.and_then(|version| version.plugin.clone()).expect("loaded")
    };
    let run = |past: &mut Past, pins: Option<Value>| {
        let pins = pins.map(twin);
        let selection = select(&here, &offers, pins.as_ref(), past);
        let released = past.follow(&selection);
        (chosen(&select(&here, &offers, pins.as_ref(), past)).to_owned(), released)
    };
    assert_eq!(run(&mut past, None), ("3.0.0".to_owned(), false));
    past.worked(&version("1.0.0"));
    assert!(past.quarantine(&offers, &version("3.0.0"), 5));
    assert_eq!(run(&mut past, None), ("1.0.0".to_owned(), false), "what answered well here last");
    assert!(past.quarantine(&offers, &version("1.0.0"), 5));
    assert_eq!(run(&mut past, None), ("2.0.0".to_owned(), false), "the current one");
    assert!(past.quarantine(&offers, &version("2.0.0"), 5));
    assert_eq!(run(&mut past, None), ("1.1.0".to_owned(), false), "the one before");
    assert!(!past.quarantine(&offers, &version("1.1.0"), 5), "there is nothing else");
    assert_eq!(past.quarantined().len(), 3);
    let selection = select(&here, &offers, None, &past);
    assert_eq!(report(&selection), ("1.1.0", "quarantined"));

    assert_eq!(run(&mut past, Some(json!("2.0.0"))), ("2.0.0".to_owned(), true), "pinned: another chance");
    assert!(past.quarantine(&offers, &version("2.0.0"), 5));
    assert_eq!(run(&mut past, Some(json!("2.0.0"))), ("1.0.0".to_owned(), false));
    past.release("lock-door");
    assert_eq!(run(&mut past, Some(json!("2.0.0"))), ("2.0.0".to_owned(), false), "the same pin again");
}

#[test]
fn a_plugin_runs_only_where_it_is_placed() {
    let (past, mut offers) = (Past::default(), offers(100));
    let mut other = offers.plugins[0].clone();
    other.name = PluginName::parse("lamp").expect("a name");
    let lamp = Plugin { name: other.name.clone(), id: hash("lamp"), ..(*other.current).clone() };
    other.current = Arc::new(lamp);
    (other.canary, other.versions) = (None, Vec::new());
    offers.current =
        Arc::new(Lineup { generation: 1, plugins: vec![offers.plugins[0].current.clone(), other.current.clone()] });
    offers.plugins[0].placement =
        Placement::On { patterns: vec![DeviceGlob::parse("door-*").expect("a pattern")], devices: Arc::default() };
    offers.plugins.push(other);
    let run = |id: &str, pins: Option<Value>| {
        let pins = pins.map(twin);
        let selection = select(&device(id), &offers, pins.as_ref(), &past);
        let labels = selection.lineup.plugins.iter().map(|plugin| format!("{} {}", plugin.name, plugin.label));
        (labels.collect::<Vec<_>>(), selection.reports.get("lock-door").cloned().flatten())
    };
    assert_eq!(run("door-0001", None), (vec!["lock-door 3.0.0".to_owned(), "lamp 2.0.0".to_owned()], None));
    assert_eq!(run("gate-1", None), (vec!["lamp 2.0.0".to_owned()], None), "nor its canary");
    let (runs, report) = run("gate-1", Some(json!("1.0.0")));
    assert_eq!(runs, ["lamp 2.0.0"], "whatever its twin pins");
    let reason = "the plugin lock-door is not placed on this device";
    assert_eq!(report, Some(json!({"status": "unknown-version", "reason": reason})));
}

#[test]
fn the_last_of_the_plugins_may_be_the_one_that_is_not_placed() {
    let (past, mut offers) = (Past::default(), offers(0));
    offers.plugins[0].placement = Placement::On { patterns: Vec::new(), devices: Arc::default() };
    assert!(select(&device("gate-1"), &offers, None, &past).lineup.plugins.is_empty());
}

#[test]
fn other_terms_end_a_quarantine() {
    let (here, mut past, mut offers) = (device("door-0001"), Past::default(), offers(0));
    past.follow(&select(&here, &offers, None, &past));
    let current = offers.plugins[0].current.clone();
    assert!(past.quarantine(&offers, &current, 5));
    assert!(!past.follow(&select(&here, &offers, None, &past)));
    let granted = Arc::new(Plugin { id: Arc::from("on other terms"), ..(*current).clone() });
    offers.plugins[0].versions[1].plugin = Some(granted.clone());
    offers.plugins[0].current = granted;
    assert!(past.follow(&select(&here, &offers, None, &past)));
    assert_eq!(chosen(&select(&here, &offers, None, &past)), "2.0.0");
}
