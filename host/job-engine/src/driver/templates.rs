//! Templates of jobs: kept beside the jobs, and no part of what the engine decides.

use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::TemplateName;
use iothub_protocol::job::template::JobTemplate;
use serde_json::{Value, json};

use super::{JobEngine, store_error};
use crate::{audit, journal};

/// Templates that are kept. They are written by people.
const MAX_TEMPLATES: u32 = 1000;

impl JobEngine {
    /// Keep a template, in place of one of that name if there is one.
    ///
    /// # Errors
    /// 403002 if it would be one too many.
    pub async fn put_template(&self, template: &JobTemplate) -> Result<(), HubError> {
        let (name, body) = (template.name.clone(), template.to_json());
        let content = json!({"template": name, (audit::REQUEST): audit::fingerprint(&body.to_string())});
        let note = self.audit("put template", None, content);
        let kept = self.store.write(move |tx| {
            let kept = journal::put_template(tx, &name, &body, note.at, MAX_TEMPLATES)?;
            if kept {
                audit::append(tx, &note)?;
            }
            Ok(kept)
        });
        match kept.await.map_err(|error| store_error(&error))? {
            true => Ok(()),
            false => Err(HubError::new(
                ErrorCode::IotHubQuotaExceeded,
                format!("there are {MAX_TEMPLATES} templates: delete one first"),
            )),
        }
    }

    /// # Errors
    /// 404000 if there is none of that name.
    pub async fn template(&self, name: &TemplateName) -> Result<JobTemplate, HubError> {
        let wanted = name.clone();
        let found = self.store.read(move |connection| journal::template(connection, &wanted)).await;
        let found = found.map_err(|error| store_error(&error))?.ok_or_else(|| no_template(name))?;
        JobTemplate::from_json(name.clone(), &found)
    }

    /// In the order of their names.
    ///
    /// # Errors
    /// 500001 if the journal cannot be read.
    pub async fn templates(&self) -> Result<Vec<Value>, HubError> {
        self.store.read(journal::templates).await.map_err(|error| store_error(&error))
    }

    /// # Errors
    /// 404000 if there is none of that name.
    pub async fn delete_template(&self, name: &TemplateName) -> Result<(), HubError> {
        let wanted = name.clone();
        let note = self.audit("delete template", None, json!({"template": name}));
        let deleted = self.store.write(move |tx| {
            let deleted = journal::delete_template(tx, &wanted)?;
            if deleted {
                audit::append(tx, &note)?;
            }
            Ok(deleted)
        });
        match deleted.await.map_err(|error| store_error(&error))? {
            true => Ok(()),
            false => Err(no_template(name)),
        }
    }
}

fn no_template(name: &TemplateName) -> HubError {
    HubError::new(ErrorCode::IotHubNotFound, format!("there is no job template {name}"))
}
