//! What a running host tells its operator, over the socket in its data folder, beyond what commands print.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// The host answers at once; a busy machine may not.
const ANSWER_BOUND: Duration = Duration::from_secs(20);

/// All actors of the host.
pub(crate) fn actors(data: &Path) -> Vec<Value> {
    list(data, "/actors")
}

/// The label of the version of a plugin that is current, and why a newer file was refused.
pub(crate) fn plugin(data: &Path, name: &str) -> (Option<String>, Option<String>) {
    let plugins = list(data, "/plugins");
    let plugin = plugins.iter().find(|plugin| plugin["name"] == name);
    let text = |pointer: &str| Some(plugin?.pointer(pointer)?.as_str()?.to_owned());
    (text("/version/label"), text("/refused/reason"))
}

fn list(data: &Path, path: &str) -> Vec<Value> {
    let mut socket = UnixStream::connect(data.join("admin.sock")).expect("the host serves its socket");
    socket.set_read_timeout(Some(ANSWER_BOUND)).expect("a bound that is not zero");
    let request = format!("GET {path} HTTP/1.1\r\nHost: latch\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("the host reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the host answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}"))
}
