//! Whose connection, twin, key or event it is: a device's own, or that of a module of it.

use std::fmt;

use crate::id::{DeviceId, IdError, ModuleId, rollout_place};

/// A device, or one module of a device.
///
/// As text `device` or `device/module`, which is also the client id in MQTT: neither id can hold a slash. Ordered by
/// device, which comes before its modules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    device: DeviceId,
    /// In a place of its own: there are very many addresses in memory, and few of modules.
    module: Option<Box<ModuleId>>,
}

impl Address {
    pub fn of_module(device: DeviceId, module: ModuleId) -> Address {
        Address { device, module: Some(Box::new(module)) }
    }

    /// Read `device` or `device/module`.
    ///
    /// # Errors
    /// Says which of the ids is none.
    pub fn parse(text: &str) -> Result<Address, IdError> {
        match text.split_once('/') {
            None => DeviceId::parse(text).map(Address::from),
            Some((device, module)) => Ok(Address::of_module(DeviceId::parse(device)?, ModuleId::parse(module)?)),
        }
    }

    /// The device that it is, or that the module is of.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    pub fn module(&self) -> Option<&ModuleId> {
        self.module.as_deref()
    }

    pub fn is_module(&self) -> bool {
        self.module.is_some()
    }

    /// As [`DeviceId::rollout_place`], of its text: modules of one device have places of their own.
    pub fn rollout_place(&self) -> (u8, u64) {
        rollout_place(&self.to_string())
    }

    /// `devices/d` or `devices/d/modules/m`: how its topics begin, and what its tokens are for, behind the host.
    pub fn path(&self) -> String {
        match &self.module {
            None => format!("devices/{}", self.device),
            Some(module) => format!("devices/{}/modules/{module}", self.device),
        }
    }

    /// What follows its path in `topic`; `None` if that does not begin with it. Makes no text, as it is asked for each
    /// message.
    pub(crate) fn strip_path<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let rest = topic.strip_prefix("devices/")?.strip_prefix(self.device.as_str())?;
        match &self.module {
            None => Some(rest),
            Some(module) => rest.strip_prefix("/modules/")?.strip_prefix(module.as_str()),
        }
    }
}

impl From<DeviceId> for Address {
    fn from(device: DeviceId) -> Address {
        Address { device, module: None }
    }
}

impl From<&DeviceId> for Address {
    fn from(device: &DeviceId) -> Address {
        Address::from(device.clone())
    }
}

impl std::str::FromStr for Address {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Address, IdError> {
        Address::parse(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            None => fmt::Display::fmt(&self.device, f),
            Some(module) => write!(f, "{}/{module}", self.device),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_stands_behind_its_device() {
        for (text, path) in [("d1", "devices/d1"), ("d1/$edgeAgent", "devices/d1/modules/$edgeAgent")] {
            let address = Address::parse(text).expect(text);
            assert_eq!((address.to_string().as_str(), address.path().as_str()), (text, path));
            assert_eq!((address.is_module(), address.device().as_str()), (text.contains('/'), "d1"));
            assert_eq!(address.strip_path(&format!("{path}/x")), Some("/x"));
        }
        let mut addresses = ["d1/m1", "d2", "d1", "d1!", "d1/m0"].map(|text| Address::parse(text).expect(text));
        addresses.sort();
        assert_eq!(addresses.map(|address| address.to_string()), ["d1", "d1/m0", "d1/m1", "d1!", "d2"]);
    }

    #[test]
    fn what_is_no_address_is_refused_by_what_is_wrong_in_it() {
        for (text, reason) in [
            ("", "a device id is empty"),
            ("/m", "a device id is empty"),
            ("d/", "a module id is empty"),
            ("d/m/x", "a module id contains '/'"),
            ("d d/m", "a device id contains ' '"),
        ] {
            let error = Address::parse(text).expect_err(text).to_string();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
    }
}
