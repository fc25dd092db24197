//! WASI, and where it is not what wasmtime offers.

use wasmtime::component::{HasData, HasSelf, Linker, Resource};
use wasmtime_wasi::p2::bindings::random::{insecure, insecure_seed, random};
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup;
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, SocketError, SocketResult};
use wasmtime_wasi::random::WasiRandomView;
use wasmtime_wasi::sockets::WasiSocketsCtxView;

use crate::guest::Guest;
use crate::output::Level;
use crate::random::Ungranted;

/// Offer WASI 0.2 to guests. All of it is linked, because languages' runtimes import it whether they use it or not;
/// grants decide what it does.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    random::add_to_linker::<_, HasSelf<Guest>>(linker, |guest| guest)?;
    insecure::add_to_linker::<_, HasSelf<Guest>>(linker, |guest| guest)?;
    insecure_seed::add_to_linker::<_, HasSelf<Guest>>(linker, |guest| guest)?;
    ip_name_lookup::add_to_linker::<_, CountedLookups>(linker, Lookups::of)?;
    linker.allow_shadowing(false);
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum RandomError {
    #[error("it asked for secure random numbers (wasi:random/random) and is not granted randomness")]
    NotGranted,
    #[error("it asked for {wanted} random bytes at once; the limit is {limit}")]
    TooMany { wanted: u64, limit: u64 },
}

impl random::Host for Guest {
    fn get_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.ask_for_secrets()?;
        self.some_bytes(len, |guest| guest.random().get_random_bytes(len))
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.ask_for_secrets()?;
        match &mut self.foretold {
            Some(numbers) => Ok(numbers.number()),
            None => self.random().get_random_u64(),
        }
    }
}

impl insecure::Host for Guest {
    fn get_insecure_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.some_bytes(len, |guest| guest.random().get_insecure_random_bytes(len))
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        match &mut self.foretold {
            Some(numbers) => Ok(numbers.number()),
            None => self.random().get_insecure_random_u64(),
        }
    }
}

impl insecure_seed::Host for Guest {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        match &mut self.foretold {
            Some(numbers) => Ok((numbers.number(), numbers.number())),
            None => self.random().insecure_seed(),
        }
    }
}

impl Guest {
    fn ask_for_secrets(&mut self) -> wasmtime::Result<()> {
        if self.foretold.is_none() {
            return Ok(());
        }
        match self.seeding.ask() {
            Ungranted::First => {
                self.output.line(Level::Warn, FORETOLD);
                Ok(())
            }
            Ungranted::Again => Ok(()),
            Ungranted::Refused => Err(wasmtime::Error::new(RandomError::NotGranted)),
        }
    }

    fn some_bytes(
        &mut self,
        wanted: u64,
        real: impl FnOnce(&mut Guest) -> wasmtime::Result<Vec<u8>>,
    ) -> wasmtime::Result<Vec<u8>> {
        let limit = self.limits.random;
        let count = usize::try_from(wanted).ok().filter(|_| wanted <= limit);
        let count = count.ok_or_else(|| wasmtime::Error::new(RandomError::TooMany { wanted, limit }))?;
        match &mut self.foretold {
            Some(numbers) => Ok(numbers.bytes(count)),
            None => real(self),
        }
    }
}

const FORETOLD: &str = "the plugin asks for secure random numbers (wasi:random/random) and is not granted randomness: \
                        it gets numbers that can be foretold, so it must make no secret of them";

/// Names are looked up by threads of the host, which a guest that has given up still keeps busy, so a call has few.
struct CountedLookups;

impl HasData for CountedLookups {
    type Data<'a> = Lookups<'a>;
}

struct Lookups<'a> {
    left: &'a mut usize,
    sockets: WasiSocketsCtxView<'a>,
}

type AddressStream = Resource<ip_name_lookup::ResolveAddressStream>;

impl Lookups<'_> {
    fn of(guest: &mut Guest) -> Lookups<'_> {
        let (left, sockets) = guest.lookups();
        Lookups { left, sockets }
    }
}

impl ip_name_lookup::Host for Lookups<'_> {
    fn resolve_addresses(&mut self, network: Resource<Network>, name: String) -> SocketResult<AddressStream> {
        let Some(left) = self.left.checked_sub(1) else { return Err(ErrorCode::TemporaryResolverFailure.into()) };
        *self.left = left;
        self.sockets.resolve_addresses(network, name)
    }
}

impl ip_name_lookup::HostResolveAddressStream for Lookups<'_> {
    fn resolve_next_address(&mut self, stream: AddressStream) -> Result<Option<IpAddress>, SocketError> {
        self.sockets.resolve_next_address(stream)
    }

    fn subscribe(&mut self, stream: AddressStream) -> wasmtime::Result<Resource<DynPollable>> {
        self.sockets.subscribe(stream)
    }

    fn drop(&mut self, stream: AddressStream) -> wasmtime::Result<()> {
        ip_name_lookup::HostResolveAddressStream::drop(&mut self.sockets, stream)
    }
}

// What the lookup's errors need.
impl network::Host for Lookups<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        self.sockets.convert_error_code(error)
    }

    fn network_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        self.sockets.network_error_code(error)
    }
}

impl network::HostNetwork for Lookups<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.sockets, network)
    }
}

#[cfg(test)]
mod tests;
