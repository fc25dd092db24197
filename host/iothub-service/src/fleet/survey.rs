//! Devices as a preview of a job sees them, as far as queries tell.

use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::query::{Condition, Source};
use job_engine::{Standing, Survey, Surveyed};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Naming, PAGE, PageRequest, RestFleet, address, of_all};

impl RestFleet {
    /// Give pages until there are no more, or nobody takes them. Whether a device listens for methods no query tells.
    pub(super) async fn survey_rows(
        &self,
        survey: &Survey,
        pages: &mpsc::Sender<Vec<Surveyed>>,
    ) -> Result<(), HubError> {
        let Survey { condition, among, marks } = survey;
        let source = condition.source();
        // Whole twins only if more is asked of them: there may be a million.
        let items = match (marks.is_empty(), source) {
            (false, _) => "*",
            (true, Source::Modules) => "deviceId, moduleId, connectionState",
            (true, Source::Devices | Source::Jobs) => "deviceId, connectionState, status",
        };
        let surveyed = |address, row: &Value| surveyed(address, row, marks, source);
        let Some(among) = among else {
            let query = of_all(condition, items);
            let mut next = Some(PageRequest { max_items: Some(PAGE), continuation: None });
            while let Some(wanted) = next {
                let (rows, rest) = self.page(&query, wanted).await?;
                let page = rows.iter().map(|row| Ok(surveyed(address(row)?, row)));
                if pages.send(page.collect::<Result<_, HubError>>()?).await.is_err() {
                    break;
                }
                next = rest;
            }
            return Ok(());
        };
        let (asked, mut page) = (Naming::among(condition, items), Vec::new());
        let each = |address, row: &Value| {
            if asked.has_condition || condition.matches(row) {
                page.push(surveyed(address, row));
            }
        };
        self.named(&asked, among, each).await?;
        // If nobody takes it, there is nothing left to do either.
        drop(pages.send(page).await);
        Ok(())
    }
}

fn surveyed(address: Address, row: &Value, marks: &[Condition], source: Source) -> Surveyed {
    let holding = marks.iter().enumerate().filter(|(_, mark)| mark.source() == source && mark.matches(row));
    let marks = holding.fold(0, |holding, (bit, _)| holding | (1 << bit));
    let is = |member: &str, text: &str| row[member].as_str().map(|found| found == text);
    let is_disabled = (source != Source::Modules).then(|| is("status", "disabled")).flatten();
    let standing = Standing { is_connected: is("connectionState", "Connected"), is_listening: None, is_disabled };
    Surveyed { address, marks, standing }
}
