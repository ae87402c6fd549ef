//! A listener per route, and the connections that it accepted: HTTP/1.1 and HTTP/2 with prior knowledge on one port.
//! The only part that talks to clients.

mod connection;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::forward::Context;

/// Connections that the kernel keeps for a listener until they are accepted.
const BACKLOG: i32 = 4096;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where to listen.
    pub host: IpAddr,
    /// Connections over all routes.
    pub max_connections: usize,
    /// How long a new connection may take to send the head of its first request.
    pub head_timeout: Duration,
    /// How long a connection may be without a request.
    pub idle_timeout: Duration,
}

/// The listeners of this process and their connections.
#[derive(Debug)]
pub struct Server {
    context: Arc<Context>,
    settings: Settings,
    listeners: HashMap<u16, CancellationToken>,
    permits: Arc<Semaphore>,
    open: Arc<AtomicUsize>,
}

impl Server {
    /// A server without listeners.
    pub fn new(context: Arc<Context>, settings: Settings) -> Server {
        Server {
            context,
            settings,
            listeners: HashMap::new(),
            permits: Arc::new(Semaphore::new(settings.max_connections)),
            open: Arc::default(),
        }
    }

    /// Open connections; shared, so that others can read it.
    pub fn open_connections(&self) -> Arc<AtomicUsize> {
        self.open.clone()
    }

    /// Whether the port is listened on.
    pub fn is_listening(&self, port: u16) -> bool {
        self.listeners.contains_key(&port)
    }

    /// Listens on a port, if it does not yet.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub fn listen(&mut self, port: u16) -> io::Result<()> {
        if self.is_listening(port) {
            return Ok(());
        }
        let listener = bind(SocketAddr::new(self.settings.host, port))?;
        let stop = CancellationToken::new();
        self.listeners.insert(port, stop.clone());
        let (context, settings) = (self.context.clone(), self.settings);
        let (permits, open) = (self.permits.clone(), self.open.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = accept(listener, port, context, settings, permits, open) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(())
    }

    /// Stops listening on every port for which `keep` is false. Open connections go on.
    pub fn retain(&mut self, keep: impl Fn(u16) -> bool) {
        self.listeners.retain(|port, stop| {
            let keep = keep(*port);
            if !keep {
                stop.cancel();
            }
            keep
        });
    }
}

/// The address to listen on: `::` takes IPv4 too, but there are nodes whose kernel has no IPv6 at all.
pub fn usable_host(host: IpAddr) -> IpAddr {
    let any6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if host == any6 && Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_err() {
        return IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    }
    host
}

/// Listens on an address.
///
/// # Errors
/// When it cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `::` is to take IPv4 too, whatever the node's default says.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    listener: TcpListener,
    port: u16,
    context: Arc<Context>,
    settings: Settings,
    permits: Arc<Semaphore>,
    open: Arc<AtomicUsize>,
) {
    loop {
        // Beyond the limit connections wait in the kernel's queue; the semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(port, %error, "a connection could not be accepted");
                if !is_of_one_connection(&error) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let context = context.clone();
        let counted = Counted::new(&open);
        tokio::spawn(async move {
            connection::serve(stream, port, context, settings).await;
            drop((permit, counted));
        });
    }
}

/// Errors that speak of the connection only, not of the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Counted {
        open.fetch_add(1, Ordering::Relaxed);
        Counted(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
