//! How many devices of a job have failed, by class.

use serde_json::{Map, Value, json};

use super::policy::FailureClass;

/// Failed devices by the class of their failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FailureCounts([u64; FailureClass::ALL.len()]);

impl FailureCounts {
    pub fn add(&mut self, class: FailureClass, devices: u64) {
        self.0[class as usize] += devices;
    }

    pub fn get(&self, class: FailureClass) -> u64 {
        self.0[class as usize]
    }

    /// Of all classes.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// `{"timeout": 3}`: the classes that there are.
    pub fn to_json(self) -> Value {
        let counted = FailureClass::ALL.into_iter().filter(|class| self.get(*class) > 0);
        let counted: Map<String, Value> =
            counted.map(|class| (class.name().to_owned(), json!(self.get(class)))).collect();
        Value::Object(counted)
    }

    /// The reverse. What is no class or no number, as of a hub that knows more, counts for nothing.
    pub fn from_json(value: &Value) -> FailureCounts {
        let mut counts = FailureCounts::default();
        for class in FailureClass::ALL {
            counts.add(class, value[class.name()].as_u64().unwrap_or(0));
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_read_back_and_only_classes_that_there_are_show() {
        let mut counts = FailureCounts::default();
        assert_eq!((counts.to_json(), counts.total()), (json!({}), 0));
        for (class, devices) in [(FailureClass::Timeout, 3), (FailureClass::Version, 1), (FailureClass::Timeout, 2)] {
            counts.add(class, devices);
        }
        assert_eq!((counts.to_json(), counts.total()), (json!({"timeout": 5, "version": 1}), 6));
        assert_eq!(FailureCounts::from_json(&counts.to_json()), counts);
        assert_eq!(FailureCounts::from_json(&json!({"timeout": "x", "moonlight": 4})), FailureCounts::default());
        // Each class has a place of its own.
        for (place, class) in FailureClass::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, place);
        }
    }
}
