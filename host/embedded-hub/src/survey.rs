//! Devices as a preview of a job sees them, a million of them in the memory of some.

use std::collections::VecDeque;

use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::query::{Condition, Parts};
use job_engine::{Standing, Survey, Surveyed};
use tokio::sync::mpsc;

use crate::driver::HubHandle;
use crate::scan::Walk;
use crate::store::Kind;

/// Give pages until there are no more, or nobody takes them.
pub(crate) async fn survey(
    hub: &HubHandle,
    survey: &Survey,
    pages: &mpsc::Sender<Vec<Surveyed>>,
) -> Result<(), HubError> {
    let Survey { condition, among, marks } = survey;
    let kind = Kind::of_source(condition.source());
    let marks: Vec<_> = marks.iter().enumerate().filter(|(_, mark)| Kind::of_source(mark.source()) == kind).collect();
    let parts = marks.iter().map(|(_, mark)| mark.parts()).fold(condition.parts(), Parts::and);
    let mut walk = match among {
        None => Walk::parts(hub, condition, parts),
        Some(among) => Walk::among(hub, condition, among, parts),
    };
    let mut disabled = Disabled::new(hub, kind, among.as_deref())?;
    while let Some(twins) = walk.next().await? {
        let mut page = Vec::with_capacity(twins.len());
        for (address, twin) in twins {
            let holding = marks.iter().filter(|(_, mark)| mark.matches(&twin));
            let marks = holding.fold(0, |holding, (bit, _)| holding | (1 << bit));
            let (is_connected, is_listening) = hub.is_there(&address)?;
            let is_disabled = disabled.has(&address).await?;
            let standing = Standing { is_connected: Some(is_connected), is_listening: Some(is_listening), is_disabled };
            page.push(Surveyed { address, marks, standing });
        }
        if pages.send(page).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Disabled devices, read along with the others: who is disabled stands in another table than twins, and is asked for
/// there only.
struct Disabled {
    /// `None` of modules, which cannot be.
    walk: Option<Walk>,
    /// In order of their ids.
    ahead: VecDeque<String>,
}

impl Disabled {
    fn new(hub: &HubHandle, kind: Kind, among: Option<&[Address]>) -> Result<Disabled, HubError> {
        let condition = Condition::parse_job("status = 'disabled'")?;
        let walk = (kind == Kind::Devices).then(|| match among {
            None => Walk::parts(hub, &condition, condition.parts()),
            Some(among) => Walk::among(hub, &condition, among, condition.parts()),
        });
        Ok(Disabled { walk, ahead: VecDeque::new() })
    }

    /// Asked in order of ids.
    async fn has(&mut self, address: &Address) -> Result<Option<bool>, HubError> {
        let Some(walk) = &mut self.walk else { return Ok(None) };
        let id = address.to_string();
        loop {
            while self.ahead.pop_front_if(|next| *next < id).is_some() {}
            if !self.ahead.is_empty() {
                return Ok(Some(self.ahead.front() == Some(&id)));
            }
            match walk.next().await? {
                None => return Ok(Some(false)),
                Some(next) => self.ahead.extend(next.into_iter().map(|(address, _)| address.to_string())),
            }
        }
    }
}
