//! What wasmtime's WASI makes of the grants. Its functions are called as a guest's calls arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tokio::net::UdpSocket;
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p2::FsError;
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Descriptor, DescriptorFlags, HostDescriptor, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::bindings::sockets::instance_network::Host as _;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::Host as _;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::bindings::sockets::udp::HostUdpSocket;
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket::Host as _;
use wasmtime_wasi::sockets::WasiSocketsView;

use super::*;
use crate::terms::{AddressGrant, Grants, Terms};
use crate::testing::{Component, snapshot, source};
use crate::{CallLimits, Instance, PluginSource, Runtime, RuntimeSettings};

async fn instance(grants: Grants, device: &str) -> Instance {
    let runtime = Runtime::new(RuntimeSettings::default()).expect("a runtime");
    let terms = Terms { grants, ..Terms::default() };
    let source = PluginSource { terms, ..source("p", Component::echo("lockDoor").wasm()) };
    let loading = runtime.clone();
    let version = tokio::task::spawn_blocking(move || loading.load(source)).await.expect("no panic").expect("good");
    let device = iothub_protocol::id::DeviceId::parse(device).expect("an id");
    runtime.instantiate(&version, &device, snapshot().now).await.expect("an instance")
}

fn to(network: impl Into<IpAddr>, prefix: u8, port: Option<u16>) -> Grants {
    let network = network.into();
    Grants { addresses: vec![AddressGrant { network, prefix, port }], ..Grants::default() }
}

fn here(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn code(error: SocketError) -> ErrorCode {
    error.downcast().expect("no trap")
}

#[tokio::test]
async fn nothing_is_to_be_had_by_default() {
    let mut instance = instance(Grants::default(), "door-0001").await;
    let guest = instance.guest();
    assert!(guest.filesystem().get_directories().expect("no trap").is_empty());
    let mut sockets = guest.sockets();
    let denied = [
        sockets.create_tcp_socket(IpAddressFamily::Ipv4).err(),
        sockets.create_tcp_socket(IpAddressFamily::Ipv6).err(),
        sockets.create_udp_socket(IpAddressFamily::Ipv4).await.err(),
    ];
    assert_eq!(denied.map(|error| error.map(code)), [Some(ErrorCode::AccessDenied); 3]);
    let network = sockets.instance_network().expect("no trap");
    let lookup = Lookups::of(guest).resolve_addresses(network, "localhost".to_owned());
    assert_eq!(lookup.map_err(code).expect_err("denied"), ErrorCode::PermanentResolverFailure);
}

/// What binding a TCP socket to `address`, and then listening, comes to.
async fn listen(guest: &mut Guest, address: SocketAddr) -> Result<(), ErrorCode> {
    let mut sockets = guest.sockets();
    let network = sockets.instance_network().expect("no trap");
    let socket = sockets.create_tcp_socket(IpAddressFamily::Ipv4).map_err(code)?;
    let again = || Resource::new_borrow(socket.rep());
    HostTcpSocket::start_bind(&mut sockets, again(), network, address.into()).await.map_err(code)?;
    HostTcpSocket::finish_bind(&mut sockets, again()).map_err(code)?;
    sockets.start_listen(again()).await.map_err(code)
}

#[tokio::test]
async fn no_grant_lets_a_guest_listen() {
    let mut instance = instance(to(ANY, 0, None), "door-0001").await;
    for address in [here(0), (ANY, 0).into(), (ANY, 61_616).into()] {
        assert_eq!(listen(instance.guest(), address).await, Err(ErrorCode::AccessDenied), "{address}");
    }
}

/// Sends a datagram to `remote` from a UDP socket; the streams that belong to it.
async fn datagram(
    guest: &mut Guest,
    remote: SocketAddr,
) -> Result<Resource<wasmtime_wasi::p2::bindings::sockets::udp::IncomingDatagramStream>, ErrorCode> {
    use wasmtime_wasi::p2::bindings::sockets::udp::{HostOutgoingDatagramStream, OutgoingDatagram};
    let mut sockets = guest.sockets();
    let network = sockets.instance_network().expect("no trap");
    let socket = sockets.create_udp_socket(IpAddressFamily::Ipv4).await.map_err(code)?;
    let again = || Resource::new_borrow(socket.rep());
    let local = IpSocketAddress::from(SocketAddr::from((ANY, 0)));
    HostUdpSocket::start_bind(&mut sockets, again(), network, local).await.map_err(code)?;
    HostUdpSocket::finish_bind(&mut sockets, again()).map_err(code)?;
    let (incoming, outgoing) = sockets.stream(again(), None).await.map_err(code)?;
    let datagram = OutgoingDatagram { data: b"ping".to_vec(), remote_address: Some(remote.into()) };
    sockets.check_send(Resource::new_borrow(outgoing.rep())).map_err(code)?;
    let sent = sockets.send(outgoing, vec![datagram]).map_err(code)?;
    assert_eq!(sent, 1);
    Ok(incoming)
}

#[tokio::test]
async fn datagrams_go_to_granted_addresses_only() {
    let listener = UdpSocket::bind(here(0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut allowed = instance(to(Ipv4Addr::LOCALHOST, 32, Some(port)), "door-0001").await;
    datagram(allowed.guest(), here(port)).await.expect("sent");
    let mut buffer = [0; 8];
    let (length, _) = listener.recv_from(&mut buffer).await.expect("received");
    assert_eq!(&buffer[..length], b"ping");

    for grants in [to(Ipv4Addr::LOCALHOST, 32, Some(port ^ 1)), to(Ipv4Addr::new(10, 0, 0, 0), 8, None)] {
        let mut denied = instance(grants, "door-0001").await;
        assert_eq!(datagram(denied.guest(), here(port)).await.err(), Some(ErrorCode::AccessDenied));
    }
}

#[tokio::test]
async fn a_call_looks_up_few_names_and_only_with_an_address_granted() {
    let mut instance = instance(to(Ipv4Addr::LOCALHOST, 32, None), "door-0001").await;
    let guest = instance.guest();
    let network = guest.sockets().instance_network().expect("no trap");
    let look_up = |guest: &mut Guest| {
        let network = Resource::new_borrow(network.rep());
        Lookups::of(guest).resolve_addresses(network, "127.0.0.1".to_owned()).map(drop).map_err(code)
    };
    for _ in 0..CallLimits::default().lookups {
        assert_eq!(look_up(guest), Ok(()));
    }
    assert_eq!(look_up(guest), Err(ErrorCode::TemporaryResolverFailure));
    guest.begin(Some(snapshot()), std::time::Duration::from_secs(60));
    assert_eq!(look_up(guest), Ok(()), "the next call has its own");
}

#[test]
fn a_network_includes_what_begins_as_it_does() {
    let includes = |grants: Grants, address: &str| grants.addresses[0].includes(address.parse().expect("an address"));
    for (grants, address, expect) in [
        (to(Ipv4Addr::new(10, 1, 2, 3), 32, None), "10.1.2.3:1", true),
        (to(Ipv4Addr::new(10, 1, 2, 3), 32, None), "10.1.2.4:1", false),
        (to(Ipv4Addr::new(10, 1, 2, 3), 31, None), "10.1.2.2:1", true),
        (to(Ipv4Addr::new(10, 1, 2, 3), 0, Some(443)), "1.2.3.4:443", true),
        (to(Ipv4Addr::new(10, 1, 2, 3), 0, Some(443)), "1.2.3.4:80", false),
        (to(ANY, 0, None), "[::1]:443", false),
        (to(Ipv6Addr::UNSPECIFIED, 0, None), "1.2.3.4:443", false),
        (to(Ipv6Addr::LOCALHOST, 128, None), "[::1]:443", true),
        (to(Ipv6Addr::LOCALHOST, 128, None), "[::2]:443", false),
        (to(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9), 32, None), "[fd00:1::5]:443", true),
        (to(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9), 32, None), "[fd00:2::5]:443", false),
        (to(Ipv4Addr::new(10, 1, 2, 3), 200, None), "10.1.2.4:1", false),
    ] {
        assert_eq!(includes(grants.clone(), address), expect, "{:?} {address}", grants.addresses);
    }
}

fn folder(path: &Path) -> Grants {
    Grants { folder: Some(path.to_owned()), ..Grants::default() }
}

/// Open `path` in the guest's folder to be written to, and made if it is not there.
async fn open(guest: &mut Guest, path: &str) -> Result<Resource<Descriptor>, FsError> {
    let mut files = guest.filesystem();
    let (root, name) = files.get_directories().map_err(FsError::trap)?.remove(0);
    assert_eq!(name, "/data");
    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
    files.open_at(root, PathFlags::SYMLINK_FOLLOW, path.to_owned(), OpenFlags::CREATE, flags).await
}

async fn link(guest: &mut Guest, target: &str, path: &str) {
    let mut files = guest.filesystem();
    let (root, _) = files.get_directories().expect("no trap").remove(0);
    // An absolute target is refused at once; another one when it is followed.
    let _ = files.symlink_at(root, target.to_owned(), path.to_owned()).await;
}

#[tokio::test]
async fn each_device_has_a_folder_of_its_own_and_sees_nothing_else() {
    let granted = tempfile::tempdir().expect("a folder");
    std::fs::write(granted.path().join("secret"), "x").expect("written");
    let mut one = instance(folder(granted.path()), "door-0001").await;
    let file = open(one.guest(), "kept").await.expect("made");
    one.guest().filesystem().write(file, b"x".to_vec(), 0).await.expect("written");
    assert_eq!(std::fs::read(granted.path().join("p/door-0001/kept")).expect("there"), b"x");

    let mut again = instance(folder(granted.path()), "door-0001").await;
    let kept = open(again.guest(), "kept").await.expect("there");
    let (bytes, _) = again.guest().filesystem().read(kept, 10, 0).await.expect("read");
    assert_eq!(bytes, b"x", "what one instance wrote the next one reads");

    let mut other = instance(folder(granted.path()), "door-0002").await;
    assert!(granted.path().join("p/door-0002").is_dir());
    let guest = other.guest();
    link(guest, "../../secret", "link").await;
    link(guest, granted.path().join("secret").to_str().expect("text"), "absolute").await;
    link(guest, "../door-0001", "neighbour").await;
    let absolute = granted.path().join("secret");
    for path in ["../door-0001/kept", "../../secret", "link", "neighbour/kept", absolute.to_str().expect("text")] {
        assert!(open(guest, path).await.is_err(), "{path}");
    }
    // One that somebody else left there leads nowhere either.
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&absolute, granted.path().join("p/door-0002/planted")).expect("a link");
        assert!(open(guest, "planted").await.is_err());
    }
    assert_eq!(std::fs::read(absolute).expect("there"), b"x");
}

#[tokio::test]
async fn a_guest_holds_few_files() {
    let granted = tempfile::tempdir().expect("a folder");
    let mut instance = instance(folder(granted.path()), "door-0001").await;
    let guest = instance.guest();
    let mut opened = 0;
    while open(guest, "kept").await.is_ok() {
        opened += 1;
        assert!(opened < 1000);
    }
    // Each opening also takes the folder anew.
    assert_eq!(opened, CallLimits::default().files / 2);
}
