//! One file behind an `http` or `https` URL. A URL that ends with a slash means `model.onnx` below it.
//!
//! What the user wrote is fetched wherever it leads. A redirect is the server's wish, not the user's: it may not lead
//! to link-local addresses, where clouds keep their metadata service, nor from elsewhere to this machine itself, nor
//! from https to http.

use super::StorageError;
use super::download::{Contents, Remote, Source as Store};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use url::{Host, Url};

const MAX_REDIRECTS: usize = 10;

pub(super) struct Source {
    url: Url,
}

impl Source {
    pub(super) fn new(mut url: Url) -> Self {
        if url.path().ends_with('/') {
            let path = format!("{}model.onnx", url.path());
            url.set_path(&path);
        }
        Self { url }
    }

    async fn open(&self) -> Result<Contents, StorageError> {
        let mut url = self.url.clone();
        for hop in 0..=MAX_REDIRECTS {
            let request = client(&url, hop > 0)?.get(with_credentials_removed(&url));
            let request = match (url.username(), url.password()) {
                ("", None) => request,
                (user, password) => request.basic_auth(user, password),
            };
            let response = request.send().await.map_err(|error| transfer_failed(&url, &error))?;
            let status = response.status();
            if status.is_success() {
                let bytes = response.content_length();
                let place = url.clone();
                let chunks = response
                    .bytes_stream()
                    .map(move |chunk| chunk.map_err(|error| transfer_failed(&place, &error)));
                return Ok(Contents { bytes, chunks: chunks.boxed() });
            }
            if !status.is_redirection() {
                let message = format!("{} answered {status}", shown(&url));
                return Err(StorageError::by_status(status.as_u16(), message));
            }
            let location =
                response.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok());
            let Some(location) = location else {
                return Err(StorageError::refused(format!(
                    "{} answered {status} without a location",
                    shown(&url)
                )));
            };
            let next =
                url.join(location).map_err(|error| refused_redirect(&url, location, &error.to_string()))?;
            check_redirect(&url, &next)?;
            url = next;
        }
        Err(StorageError::refused(format!("{} redirects more than {MAX_REDIRECTS} times", shown(&self.url))))
    }
}

impl Store for Source {
    fn describe(&self) -> String {
        shown(&self.url)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Remote>, StorageError>> {
        let remote = Remote { key: String::new(), name: "model.onnx".to_owned(), bytes: None, tag: None };
        std::future::ready(Ok(vec![remote])).boxed()
    }

    fn get<'a>(&'a self, _: &'a Remote) -> BoxFuture<'a, Result<Contents, StorageError>> {
        self.open().boxed()
    }
}

/// The URL for messages, without what may be a secret: the user's part and the query.
fn shown(url: &Url) -> String {
    let mut url = with_credentials_removed(url);
    url.set_query(None);
    url.to_string()
}

fn with_credentials_removed(url: &Url) -> Url {
    let mut url = url.clone();
    // Both fail only for URLs that cannot have a user at all.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

/// A client for one hop. Certificates of the system are read only where they are needed, so that plain http works in
/// an image that has none.
fn client(url: &Url, redirected: bool) -> Result<reqwest::Client, StorageError> {
    super::choose_tls();
    let builder = reqwest::Client::builder()
        .user_agent(concat!("serin-runtime/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(60));
    let builder = if url.scheme() == "https" { builder } else { builder.tls_certs_only([]) };
    let builder = if redirected { builder.dns_resolver(Arc::new(WithoutLinkLocal)) } else { builder };
    builder
        .build()
        .map_err(|error| StorageError::refused(format!("cannot make an HTTP client: {}", words(&error))))
}

fn check_redirect(from: &Url, to: &Url) -> Result<(), StorageError> {
    let refuse = |why: &str| Err(refused_redirect(from, &shown(to), why));
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return refuse("it leaves https"),
        _ => return refuse("it is not http"),
    }
    let address = |url: &Url| match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    };
    let is_local = |url: &Url| {
        address(url).is_some_and(|address| address.to_canonical().is_loopback())
            || url.host_str().is_some_and(|host| host == "localhost" || host.ends_with(".localhost"))
    };
    if address(to).is_some_and(is_link_local) {
        return refuse("the address is link-local");
    }
    if is_local(to) && !is_local(from) {
        return refuse("it leads to this machine itself");
    }
    Ok(())
}

fn refused_redirect(from: &Url, to: &str, why: &str) -> StorageError {
    StorageError::refused(format!("{} redirects to {to}, which is not followed: {why}", shown(from)))
}

/// 169.254.0.0/16 and fe80::/10, in any notation, and the one address of AWS that lies elsewhere.
fn is_link_local(address: IpAddr) -> bool {
    const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254);
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address == AWS_METADATA,
    }
}

/// Looks names up as usual and leaves out link-local addresses, at the moment of connecting, so that a name cannot
/// mean something else when it is checked.
struct WithoutLinkLocal;

impl Resolve for WithoutLinkLocal {
    fn resolve(&self, name: Name) -> Resolving {
        async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| !is_link_local(address.ip())).collect();
            if allowed.is_empty() {
                return Err(format!("`{}` has no address that a redirect may lead to", name.as_str()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        }
        .boxed()
    }
}

fn transfer_failed(url: &Url, error: &reqwest::Error) -> StorageError {
    StorageError::Transient(format!("{}: {}", shown(url), words(error)))
}

/// The innermost causes say what happened; the outer one only that something did.
fn words(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if std::error::Error::source(error).is_none() || !message.contains("error sending request") {
            text = if text.is_empty() { message } else { format!("{text}: {message}") };
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_may() {
        let check = |from: &str, to: &str, expect: bool| {
            let (from, to) = (Url::parse(from).expect("a URL"), Url::parse(to).expect("a URL"));
            assert_eq!(check_redirect(&from, &to).is_ok(), expect, "{from} -> {to}");
        };
        check("http://a.example/x", "https://b.example/y", true);
        check("http://a.example/x", "http://10.0.0.1/y", true);
        check("http://127.0.0.1:1/x", "http://127.0.0.1:2/y", true);
        check("https://a.example/x", "http://a.example/y", false);
        check("http://a.example/x", "http://169.254.169.254/latest", false);
        check("http://a.example/x", "http://2852039166/latest", false);
        check("http://a.example/x", "http://[fe80::1]/", false);
        check("http://a.example/x", "http://[::ffff:169.254.169.254]/", false);
        check("http://a.example/x", "http://[fd00:ec2::254]/", false);
        check("http://a.example/x", "http://127.0.0.1/", false);
        check("http://a.example/x", "http://localhost:8081/", false);
        check("http://a.example/x", "ftp://a.example/", false);
    }

    #[tokio::test]
    async fn names_of_link_local_addresses_do_not_resolve() {
        let resolved = |name: &str| WithoutLinkLocal.resolve(name.parse().expect("a name"));
        assert!(resolved("localhost").await.is_ok());
        assert!(resolved("169.254.169.254").await.is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://user:secret@example.org/m/?token=secret").expect("a URL");
        assert_eq!(Source::new(url).describe(), "https://example.org/m/model.onnx");
    }
}
