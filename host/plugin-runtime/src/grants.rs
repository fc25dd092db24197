//! WASI as far as it is granted.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, WasiCtx};

use crate::clock::{self, CallTime};
use crate::folder::GUEST_PATH;
use crate::output::{Output, Standard};
use crate::settings::CallLimits;
use crate::terms::{AddressGrant, Grants};

/// What an instance is made with.
pub(crate) struct Surroundings<'a> {
    pub(crate) output: &'a Output,
    pub(crate) time: &'a CallTime,
    /// The device's folder, if one is granted and there is a device.
    pub(crate) folder: Option<&'a Path>,
    /// Whether the instance is for a device. The self-test reaches nothing outside: it is to leave no traces.
    pub(crate) reaches_out: bool,
}

/// A voice, and what is granted: by default no environment, no folder, no socket, no name lookup and no time but the
/// call's. (For randomness see [`crate::random`].)
pub(crate) fn context(
    grants: &Grants,
    limits: CallLimits,
    surroundings: &Surroundings<'_>,
) -> wasmtime::Result<WasiCtx> {
    let Surroundings { output, time, folder, reaches_out } = surroundings;
    let mut wasi = WasiCtx::builder();
    wasi.stdout(output.stream(Standard::Output)).stderr(output.stream(Standard::Error)).max_random_size(limits.random);
    for (name, value) in &grants.environment {
        wasi.env(name, value);
    }
    clock::grant(grants.clock, time, &mut wasi);
    if let Some(folder) = folder {
        wasi.preopened_dir(folder, GUEST_PATH, FsPerms::ReadWrite)?;
    }
    if *reaches_out && !grants.addresses.is_empty() {
        let addresses = grants.addresses.clone();
        wasi.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true).socket_addr_check(move |address, wanted| {
            let granted = is_granted(&addresses, address, wanted);
            Box::pin(async move { granted })
        });
    }
    Ok(wasi.build())
}

/// Whether a socket may be used so. Nobody connects to a guest: it listens nowhere, and chooses no port of its own,
/// which could be one that somebody else is to have.
fn is_granted(addresses: &[AddressGrant], address: SocketAddr, wanted: SocketAddrUse) -> bool {
    match wanted {
        SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => address.port() == 0 && address.ip().is_unspecified(),
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
            addresses.iter().any(|grant| grant.includes(address))
        }
    }
}

impl AddressGrant {
    /// Whether `address` is in the network, and its port the granted one.
    pub fn includes(&self, address: SocketAddr) -> bool {
        self.port.is_none_or(|port| port == address.port())
            && match (self.network, address.ip().to_canonical()) {
                (IpAddr::V4(network), IpAddr::V4(address)) => {
                    let beyond = 32 - u32::from(self.prefix.min(32));
                    (u32::from(network) ^ u32::from(address)).checked_shr(beyond).unwrap_or(0) == 0
                }
                (IpAddr::V6(network), IpAddr::V6(address)) => {
                    let beyond = 128 - u32::from(self.prefix.min(128));
                    (u128::from(network) ^ u128::from(address)).checked_shr(beyond).unwrap_or(0) == 0
                }
                _ => false,
            }
    }
}
