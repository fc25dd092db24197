//! What configurations make of a twin. Pure.
//!
//! Of all that target a device or a module, each path gets the value of the one with the highest priority; of two with the same, of
//! the one made later. What a configuration has set goes when it does not target the device any more, and stays when
//! it is deleted. A target condition sees tags, reported properties and the device's own attributes, not desired
//! properties and marks: those are what configurations change, and what depends on them would never come to rest.

use std::collections::{BTreeMap, BTreeSet};

use iothub_protocol::configuration::{
    Configuration, ConfigurationMarks, ConfigurationResults, ConfigurationStatus, Setting, Subject, marks_from_json,
    marks_to_json, metric, target,
};
use iothub_protocol::id::ConfigurationId;
use iothub_protocol::query::{Condition, Query};
use iothub_protocol::twin::{diff, merge};
use serde_json::{Map, Value};

/// All configurations, taken apart.
pub(crate) struct Plan {
    /// The strongest first.
    rules: Vec<Rule>,
    deleted: BTreeSet<ConfigurationId>,
}

struct Rule {
    id: ConfigurationId,
    subject: Subject,
    /// `None` targets none.
    target: Option<Condition>,
    settings: Vec<Setting>,
    metrics: Vec<(String, Query)>,
}

/// What is to be done with a twin.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// A merge patch of desired properties; empty for none.
    pub(crate) desired: Map<String, Value>,
    /// All marks that the twin shall have.
    pub(crate) marks: ConfigurationMarks,
    /// All that it has.
    old: ConfigurationMarks,
}

impl Decision {
    pub(crate) fn is_change(&self) -> bool {
        self.marks != self.old || !self.desired.is_empty()
    }

    /// What is left of it if the twin cannot take the properties: what was applied is, and what is new is not.
    pub(crate) fn refused(&self) -> Decision {
        let new = self.marks.keys().map(|id| (id.clone(), ConfigurationStatus::Targeted));
        let marks = new.chain(self.old.clone()).collect();
        Decision { desired: Map::new(), marks, old: self.old.clone() }
    }
}

impl Plan {
    pub(crate) fn new<'c>(
        configurations: impl Iterator<Item = &'c Configuration>,
        deleted: impl Iterator<Item = ConfigurationId>,
    ) -> Plan {
        let mut configurations: Vec<_> = configurations.collect();
        configurations.sort_by_key(|c| std::cmp::Reverse((c.priority, c.created, c.revision)));
        let rules = configurations.into_iter().map(|configuration| Rule {
            id: configuration.id.clone(),
            subject: configuration.subject,
            // Both were checked when it was made; what a later version of the language refuses does nothing.
            target: target(&configuration.target_condition).ok().flatten(),
            settings: configuration.settings(),
            metrics: configuration
                .metrics
                .iter()
                .filter_map(|(name, query)| Some((name.clone(), metric(query).ok()?)))
                .collect(),
        });
        Plan { rules: rules.collect(), deleted: deleted.collect() }
    }

    /// Whether there is nothing to do, whatever the twins are.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.deleted.is_empty()
    }

    pub(crate) fn deleted(&self) -> &BTreeSet<ConfigurationId> {
        &self.deleted
    }

    /// `twin` as back ends see it; it is the same afterwards.
    pub(crate) fn decide(&self, twin: &mut Value) -> Decision {
        let (section, marks) = (taken(twin, "/properties/desired"), taken(twin, "/configurations"));
        let subject = Subject::of_twin(twin);
        let targets =
            |rule: &&Rule| rule.subject == subject && rule.target.as_ref().is_some_and(|target| target.matches(twin));
        let targeted: Vec<&Rule> = self.rules.iter().filter(targets).collect();
        let old = marks_from_json(&marks);
        let desired = own_properties(&section);
        put_back(twin, "/properties/desired", section);
        put_back(twin, "/configurations", marks);

        let (overlay, marks) = lay_over(&targeted);
        let mut wanted = desired.clone();
        for rule in &self.rules {
            if old.get(&rule.id) == Some(&ConfigurationStatus::Applied) && !marks.contains_key(&rule.id) {
                rule.settings.iter().for_each(|setting| setting.take_out(&mut wanted));
            }
        }
        merge(&mut wanted, &overlay);
        Decision { desired: diff(&desired, &wanted), marks, old }
    }
}

/// The merge patch of all that target a device, the strongest first, and what becomes of each.
fn lay_over(targeted: &[&Rule]) -> (Map<String, Value>, ConfigurationMarks) {
    let mut paths = BTreeSet::new();
    let mut marks = ConfigurationMarks::new();
    let mut accepted: Vec<&Setting> = Vec::new();
    for rule in targeted {
        let before = accepted.len();
        accepted.extend(rule.settings.iter().filter(|setting| paths.insert(&setting.path)));
        let is_applied = rule.settings.is_empty() || accepted.len() > before;
        let status = if is_applied { ConfigurationStatus::Applied } else { ConfigurationStatus::Targeted };
        marks.insert(rule.id.clone(), status);
    }
    let mut overlay = Map::new();
    // The weakest first, so that the stronger lies over it where one's path is within the other's.
    accepted.iter().rev().for_each(|setting| setting.lay_over(&mut overlay));
    (overlay, marks)
}

fn taken(twin: &mut Value, pointer: &str) -> Value {
    twin.pointer_mut(pointer).map(Value::take).unwrap_or_default()
}

fn put_back(twin: &mut Value, pointer: &str, value: Value) {
    if let Some(place) = twin.pointer_mut(pointer) {
        *place = value;
    }
}

/// A section without what the hub keeps beside it.
fn own_properties(section: &Value) -> Map<String, Value> {
    let members = section.as_object().into_iter().flatten();
    members.filter(|(key, _)| !key.starts_with('$')).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What is counted over all twins.
pub(crate) struct Tally<'p> {
    plan: &'p Plan,
    results: BTreeMap<ConfigurationId, ConfigurationResults>,
}

impl<'p> Tally<'p> {
    pub(crate) fn new(plan: &'p Plan) -> Tally<'p> {
        let results = plan.rules.iter().map(|rule| {
            let metrics = rule.metrics.iter().map(|(name, _)| (name.clone(), 0)).collect();
            (rule.id.clone(), ConfigurationResults { targeted: 0, applied: 0, metrics })
        });
        Tally { plan, results: results.collect() }
    }

    /// Count a twin as it is after what was decided.
    pub(crate) fn count(&mut self, twin: &mut Value, decision: &Decision) {
        if let Some(members) = twin.as_object_mut() {
            members.insert("configurations".to_owned(), marks_to_json(&decision.marks));
        }
        if let Some(Value::Object(desired)) = twin.pointer_mut("/properties/desired") {
            merge(desired, &decision.desired);
        }
        let subject = Some(Subject::of_twin(twin));
        for rule in &self.plan.rules {
            let Some(results) = self.results.get_mut(&rule.id) else { continue };
            let status = decision.marks.get(&rule.id);
            results.targeted += u64::from(status.is_some());
            results.applied += u64::from(status == Some(&ConfigurationStatus::Applied));
            for (name, query) in &rule.metrics {
                if let Some(count) = results.metrics.get_mut(name)
                    && Subject::of_source(query.source()) == subject
                    && query.top().is_none_or(|top| *count < top)
                    && query.condition().matches(twin)
                {
                    *count += 1;
                }
            }
        }
    }

    pub(crate) fn finish(self) -> BTreeMap<ConfigurationId, ConfigurationResults> {
        self.results
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};
    use iothub_protocol::configuration::ConfigurationRequest;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn id(text: &str) -> ConfigurationId {
        ConfigurationId::parse(text).expect("an id")
    }

    /// Made in the order of `second`.
    fn configuration(name: &str, second: i64, priority: u32, condition: &str, content: Value) -> Configuration {
        let body = json!({
            "priority": priority,
            "targetCondition": condition,
            "content": {"deviceContent": content},
            "metrics": {"queries": {"all": "SELECT TOP 2 deviceId FROM devices",
                "done": format!("SELECT deviceId FROM devices WHERE configurations.[[{name}]].status = 'Applied'")}},
        });
        let request = ConfigurationRequest::from_json(&id(name), body.to_string().as_bytes()).expect("a request");
        Configuration::new(id(name), request, DateTime::UNIX_EPOCH + TimeDelta::seconds(second))
    }

    fn plan(configurations: &[Configuration]) -> Plan {
        Plan::new(configurations.iter(), [].into_iter())
    }

    fn twin(site: &str, desired: Value, marks: Value) -> Value {
        let mut desired = desired;
        desired["$version"] = json!(7);
        desired["$metadata"] = json!({"$lastUpdated": "T"});
        let mut twin = json!({"deviceId": "d1", "tags": {"site": site},
            "properties": {"desired": desired, "reported": {"$version": 1}}});
        if !marks.is_null() {
            twin["configurations"] = marks;
        }
        twin
    }

    fn decided(plan: &Plan, twin: &Value) -> (Value, Value, bool) {
        let mut same = twin.clone();
        let decision = plan.decide(&mut same);
        assert_eq!(same, *twin, "the twin is the same afterwards");
        (Value::Object(decision.desired.clone()), marks_to_json(&decision.marks), decision.is_change())
    }

    #[test]
    fn each_path_gets_the_value_of_the_strongest() {
        let plan = plan(&[
            configuration(
                "low",
                1,
                1,
                "*",
                json!({"properties.desired.a": 1, "properties.desired.b": {"x": 1, "y": 1}}),
            ),
            configuration(
                "high",
                2,
                9,
                "tags.site = 'A'",
                json!({"properties.desired.a": 2, "properties.desired.b.x": 2}),
            ),
            configuration("even", 3, 1, "*", json!({"properties.desired.a": 3})),
            configuration("none", 4, 99, "", json!({"properties.desired.a": 4})),
        ]);
        let (desired, marks, _) = decided(&plan, &twin("A", json!({"own": true}), Value::Null));
        assert_eq!(desired, json!({"a": 2, "b": {"x": 2, "y": 1}}));
        let applied = json!({"status": "Applied"});
        assert_eq!(marks, json!({"high": applied, "low": applied, "even": {"status": "Targeted"}}));
        let (desired, marks, _) = decided(&plan, &twin("B", json!({}), Value::Null));
        assert_eq!(desired, json!({"a": 3, "b": {"x": 1, "y": 1}}), "of two the one made later");
        assert_eq!(marks, json!({"low": applied, "even": applied}));
    }

    #[test]
    fn devices_and_modules_have_configurations_of_their_own() {
        let body = json!({
            "targetCondition": "FROM devices.modules WHERE tags.site = 'A'",
            "content": {"moduleContent": {"properties.desired.a": 2}},
            "metrics": {"queries": {"mine": "SELECT moduleId FROM devices.modules", "theirs": "SELECT * FROM devices"}},
        });
        let request = ConfigurationRequest::from_json(&id("m"), body.to_string().as_bytes()).expect("a request");
        let of_modules = Configuration::new(id("m"), request, DateTime::UNIX_EPOCH);
        let of_devices = configuration("d", 1, 9, "*", json!({"properties.desired.a": 1}));
        let plan = plan(&[of_devices, of_modules]);
        let device = twin("A", json!({}), Value::Null);
        let mut module = device.clone();
        module["moduleId"] = json!("m1");
        let applied = json!({"status": "Applied"});
        let (desired, marks, _) = decided(&plan, &device);
        assert_eq!((desired, marks), (json!({"a": 1}), json!({"d": applied})));
        let (desired, marks, _) = decided(&plan, &module);
        assert_eq!((desired, marks), (json!({"a": 2}), json!({"m": applied})));
        let mut tally = Tally::new(&plan);
        for mut twin in [device, module.clone(), module] {
            let decision = plan.decide(&mut twin);
            tally.count(&mut twin, &decision);
        }
        let results = tally.finish();
        let metrics = BTreeMap::from([("mine".to_owned(), 2), ("theirs".to_owned(), 1)]);
        assert_eq!(results[&id("m")], ConfigurationResults { targeted: 2, applied: 2, metrics });
        assert_eq!((results[&id("d")].targeted, results[&id("d")].metrics["all"]), (1, 1));
    }

    #[test]
    fn a_twin_that_is_as_it_should_be_is_left_alone() {
        let content = json!({"properties.desired.a": {"b": 1}, "properties.desired.gone": null});
        let plan = plan(&[configuration("c", 1, 1, "*", content)]);
        let mark = json!({"c": {"status": "Applied"}});
        assert_eq!(
            decided(&plan, &twin("A", json!({"a": {"b": 1, "own": 2}}), mark.clone())),
            (json!({}), mark.clone(), false)
        );
        let touched = twin("A", json!({"a": {"b": 5}, "gone": 1}), mark.clone());
        assert_eq!(decided(&plan, &touched), (json!({"a": {"b": 1}, "gone": null}), mark.clone(), true));
        let unmarked = twin("A", json!({"a": {"b": 1}}), Value::Null);
        assert_eq!(decided(&plan, &unmarked), (json!({}), mark, true));
    }

    #[test]
    fn what_does_not_target_a_device_any_more_takes_its_settings_along() {
        let strong =
            configuration("strong", 1, 5, "tags.site = 'A'", json!({"properties.desired.a": {"b": 1, "c": 1}}));
        let weak = configuration("weak", 2, 1, "*", json!({"properties.desired.a.b": 2}));
        let both = plan(&[strong.clone(), weak]);
        let applied = json!({"status": "Applied"});
        let was = json!({"strong": applied, "weak": applied});
        let (desired, marks, _) = decided(&both, &twin("B", json!({"a": {"b": 1, "c": 1}, "own": 1}), was));
        assert_eq!((desired, marks), (json!({"a": {"b": 2, "c": null}}), json!({"weak": applied})));
        let alone = plan(std::slice::from_ref(&strong));
        let was = json!({"strong": applied});
        let (desired, marks, _) = decided(&alone, &twin("B", json!({"a": {"b": 1, "c": 1}}), was));
        assert_eq!((desired, marks), (json!({"a": null}), json!({})));
        // It never set anything.
        let was = json!({"strong": {"status": "Targeted"}});
        let (desired, _, _) = decided(&alone, &twin("B", json!({"a": {"b": 1}}), was));
        assert_eq!(desired, json!({}));
        // Deleted: the settings stay, the mark goes.
        let deleted = Plan::new([].into_iter(), [id("strong")].into_iter());
        let (desired, marks, is_change) =
            decided(&deleted, &twin("A", json!({"a": {"b": 1}}), json!({"strong": applied})));
        assert_eq!((desired, marks, is_change), (json!({}), json!({}), true));
        assert!(!deleted.is_empty() && plan(&[]).is_empty());
    }

    #[test]
    fn a_condition_does_not_see_what_configurations_change() {
        let flip =
            configuration("flip", 1, 1, "NOT IS_DEFINED(properties.desired.a)", json!({"properties.desired.a": 1}));
        let marks = configuration("marks", 2, 1, "configurations.[[flip]].status = 'Applied'", json!({}));
        let plan = plan(&[flip, marks]);
        let applied = json!({"flip": {"status": "Applied"}});
        let (_, marks, _) = decided(&plan, &twin("A", json!({}), Value::Null));
        assert_eq!(marks, applied);
        assert_eq!(decided(&plan, &twin("A", json!({"a": 1}), applied.clone())), (json!({}), applied, false));
    }

    #[test]
    fn what_a_twin_refuses_is_not_applied_and_what_it_has_is() {
        let there = configuration("there", 1, 1, "*", json!({"properties.desired.a": 1}));
        let new = configuration("new", 2, 1, "*", json!({"properties.desired.b": 1}));
        let mut twin = twin("A", json!({"a": 1}), json!({"there": {"status": "Applied"}}));
        let refused = plan(&[there, new]).decide(&mut twin).refused();
        let expected = json!({"there": {"status": "Applied"}, "new": {"status": "Targeted"}});
        assert_eq!((marks_to_json(&refused.marks), refused.desired.len()), (expected, 0));
    }

    #[test]
    fn twins_are_counted_as_they_are_afterwards() {
        let plan = plan(&[configuration("c", 1, 1, "tags.site = 'A'", json!({"properties.desired.a": 1}))]);
        let mut tally = Tally::new(&plan);
        for site in ["A", "B", "A", "B"] {
            let mut twin = twin(site, json!({}), Value::Null);
            let decision = plan.decide(&mut twin);
            tally.count(&mut twin, &decision);
        }
        let results = tally.finish();
        let metrics = BTreeMap::from([("all".to_owned(), 2), ("done".to_owned(), 2)]);
        assert_eq!(results[&id("c")], ConfigurationResults { targeted: 2, applied: 2, metrics });
    }

    fn conditions() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("*"), Just("tags.site = 'A'"), Just("")]
    }

    fn contents() -> impl Strategy<Value = BTreeMap<&'static str, Value>> {
        let path =
            || prop_oneof![Just("properties.desired.a"), Just("properties.desired.a.b"), Just("properties.desired.c"),];
        let value =
            prop_oneof![Just(json!(1)), Just(json!(null)), Just(json!({"b": 2})), Just(json!({"b": {"d": 1}})),];
        proptest::collection::btree_map(path(), value, 0..3)
    }

    proptest! {
        /// Whatever configurations there are, doing what is decided leaves nothing more to do.
        #[test]
        fn every_twin_comes_to_rest(
            made in proptest::collection::vec((0_u32..3, conditions(), contents()), 0..4),
            desired in prop_oneof![Just(json!({})), Just(json!({"a": 1})), Just(json!({"a": {"b": 2, "own": 1}}))],
            sites in proptest::collection::vec(prop_oneof![Just("A"), Just("B")], 1..4),
        ) {
            let made = made.into_iter().zip(0_i64..).map(|((priority, condition, content), second)| {
                configuration(&format!("c{second}"), second, priority, condition, json!(content))
            });
            let plan = plan(&made.collect::<Vec<_>>());
            let mut current = twin("A", desired, Value::Null);
            for site in sites {
                current["tags"]["site"] = json!(site);
                let decision = plan.decide(&mut current);
                Tally::new(&plan).count(&mut current, &decision);
                let again = plan.decide(&mut current);
                prop_assert!(!again.is_change(), "{again:?} of {current}");
            }
        }
    }
}
