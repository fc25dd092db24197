//! How much a hub takes: the numbers of Azure's tiers, and a throttle. A hub that rehearses a tier keeps others to them,
//! a client keeps itself to them.

pub mod limiter;
pub mod tier;
