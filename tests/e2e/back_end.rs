//! A back end in this process: what many calls at once need, and what must not wait for a command to start.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use iothub_device::tls::{Roots, client_config};
use iothub_protocol::address::Address;
use iothub_protocol::connection_string::ServiceConnectionString;
use iothub_protocol::id::{JobId, MethodName};
use iothub_protocol::job::{DEFAULT_MAX_EXECUTION, JobAction, JobRequest};
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_service::{PageRequest, ServiceClient, ServiceError};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

/// A client of the hub of a data folder, with threads to run on.
pub(crate) struct BackEnd {
    pub(crate) runtime: Runtime,
    pub(crate) service: Arc<ServiceClient>,
}

impl BackEnd {
    pub(crate) fn of(data: &Path) -> BackEnd {
        let runtime = Builder::new_multi_thread().enable_all().build().expect("threads can be made");
        let service = ServiceClient::new(connection(data), tls(data)).expect("the TLS settings are usable");
        BackEnd { runtime, service: Arc::new(service) }
    }

    /// Invokes a method without a payload.
    pub(crate) fn call(&self, device: &str, method: &str) -> MethodResponse {
        let answered = self.runtime.block_on(call(&self.service, device, method));
        answered.unwrap_or_else(|error| panic!("{method} on {device}: {error}"))
    }

    /// The rows of a query's first page, which is all if there are no more than a thousand.
    pub(crate) fn query(&self, query: &str) -> Vec<Value> {
        let page = PageRequest { max_items: Some(1000), continuation: None };
        let page = self.runtime.block_on(self.service.query(query, &page));
        page.unwrap_or_else(|error| panic!("{query}: {error}")).items
    }

    /// Creates a job that invokes a method on all devices, now.
    pub(crate) fn start_job(&self, id: &str, method: &str) {
        let request = JobRequest {
            job_id: JobId::parse(id).expect("a job id"),
            action: JobAction::Method(direct_method(method)),
            query_condition: "*".to_owned(),
            start_time: None,
            max_execution_time_in_seconds: DEFAULT_MAX_EXECUTION,
            policy: None,
            targets: None,
            then: Vec::new(),
            recurrence: None,
        };
        let created = self.runtime.block_on(self.service.create_job(&request));
        created.unwrap_or_else(|error| panic!("job {id}: {error}"));
    }

    /// A job as it is now.
    pub(crate) fn job(&self, id: &str) -> Value {
        let id = JobId::parse(id).expect("a job id");
        self.runtime.block_on(self.service.get_job(&id)).unwrap_or_else(|error| panic!("job {id}: {error}"))
    }
}

/// Invokes a method without a payload. Any status of the device is an answer.
pub(crate) async fn call(service: &ServiceClient, device: &str, method: &str) -> Result<MethodResponse, ServiceError> {
    service.invoke_method(&Address::parse(device).expect("an address"), &direct_method(method)).await
}

/// The name of the door with that number.
pub(crate) fn door(number: u32) -> String {
    format!("door-{number:04}")
}

/// The hub's address and owner, as a data folder has them.
pub(crate) fn connection(data: &Path) -> ServiceConnectionString {
    let text = fs::read_to_string(data.join("service.connstr")).expect("the hub has written service.connstr");
    ServiceConnectionString::parse(text.trim()).expect("a connection string")
}

/// TLS that trusts the hub of a data folder.
pub(crate) fn tls(data: &Path) -> Arc<ClientConfig> {
    let pem = fs::read(data.join("ca.pem")).expect("the hub has written ca.pem");
    client_config(Roots::Pem(&pem)).expect("a certificate")
}

fn direct_method(name: &str) -> DirectMethod {
    DirectMethod {
        method_name: MethodName::parse(name).expect("a method name"),
        payload: Value::Null,
        response_timeout_in_seconds: None,
        connect_timeout_in_seconds: None,
    }
}
