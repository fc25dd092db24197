//! What the tests share: a scripted hub on a real TLS socket.

use std::sync::Arc;

use iothub_protocol::connection_string::ServiceConnectionString;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::client::ServiceClient;

pub(crate) const KEY: &str = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5MTIzNDU=";

/// A hub that gives these answers in this order, and then returns what it was asked. An answer that is empty is none: the
/// connection ends.
pub(crate) struct ScriptedHub {
    pub(crate) roots: RootCertStore,
    pub(crate) port: u16,
    pub(crate) requests: JoinHandle<Vec<String>>,
}

impl ScriptedHub {
    pub(crate) async fn start(answers: Vec<String>) -> ScriptedHub {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a server config");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a root");
        let requests = tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), answers));
        ScriptedHub { roots, port, requests }
    }

    pub(crate) fn client(&self) -> ServiceClient {
        client(&format!("localhost:{}", self.port), &self.roots)
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, answers: Vec<String>) -> Vec<String> {
    let mut requests = Vec::new();
    let mut connection = None;
    for answer in answers {
        let mut stream: TlsStream<TcpStream> = match connection.take() {
            Some(stream) => stream,
            None => {
                let (socket, _) = listener.accept().await.expect("a connection");
                let Ok(stream) = acceptor.accept(socket).await else { return requests };
                stream
            }
        };
        requests.push(read(&mut stream).await);
        if !answer.is_empty() {
            stream.write_all(answer.as_bytes()).await.expect("answered");
            connection = Some(stream);
        }
    }
    if requests.is_empty() {
        // Whoever does not trust it finds out in the handshake.
        let (socket, _) = listener.accept().await.expect("a connection");
        drop(acceptor.accept(socket).await);
    }
    requests
}

async fn read(stream: &mut TlsStream<TcpStream>) -> String {
    let mut request = String::new();
    while !is_complete(&request) {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.expect("a request");
        assert_ne!(count, 0, "closed in the middle of a request");
        request.push_str(std::str::from_utf8(&bytes[..count]).expect("text"));
    }
    request
}

fn is_complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    body.len() >= header(head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(crate) fn header<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    let pairs = request.lines().filter_map(|line| line.split_once(": "));
    pairs.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

pub(crate) fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

pub(crate) fn client(host: &str, roots: &RootCertStore) -> ServiceClient {
    let text = format!("HostName={host};SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}");
    let tls = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    ServiceClient::new(ServiceConnectionString::parse(&text).expect("a string"), Arc::new(tls)).expect("a client")
}
