//! The connections: what comes is counted, and goes wrong as told.

use super::{Fault, Held, Order, Shared, Stop, Verb};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::dto::{StreamingBlob, TimestampFormat};
use s3s::service::S3Service;
use s3s::{Body, HttpResponse};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::Sleep;

/// How far the clocks of client and server may differ, as in S3, in seconds.
const SKEW: i64 = 15 * 60;

/// A socket on an address that others of this process may have, too.
pub(super) fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

/// Serves until nobody can give orders any more. Down at first.
pub(super) async fn serve(
    address: SocketAddr,
    service: S3Service,
    shared: Arc<Shared>,
    mut orders: UnboundedReceiver<(Order, std::sync::mpsc::Sender<()>)>,
) {
    let mut listener: Option<TcpListener> = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((order, done)) = order else { break };
                match order {
                    Order::Up => listener = Some(bind(address).listen(1024).unwrap()),
                    Order::Down => {
                        listener = None;
                        connections.shutdown().await;
                    }
                }
                done.send(()).expect("who gives an order waits");
            }
            Some(stream) = accept(listener.as_ref()) => {
                connections.spawn(serve_connection(stream, service.clone(), shared.clone()));
            }
            Some(ended) = connections.join_next() => ended.expect("a connection does not panic"),
        }
    }
    connections.shutdown().await;
}

/// The next connection; never one while the server is down.
async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        // A client that has gone already is no reason to end.
        Some(listener) => listener.accept().await.ok().map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn serve_connection(stream: TcpStream, service: S3Service, shared: Arc<Shared>) {
    // Else small answers wait for the client's delayed acknowledgement: 40 ms.
    stream.set_nodelay(true).ok();
    let counted = Counted {
        stream,
        shared: shared.clone(),
        busy: Busy::default(),
    };
    let answer = service_fn(|request| answer(request, &service, &shared));
    let connection = hyper::server::conn::http1::Builder::new();
    // Connections that end early are what many tests are about.
    connection
        .serve_connection(TokioIo::new(counted), answer)
        .await
        .ok();
}

/// Bytes that go over the line in one piece.
const PIECE: usize = 16 << 10;

/// A connection that counts its bytes, and lets them go as fast as the line does.
struct Counted {
    stream: TcpStream,
    shared: Arc<Shared>,
    busy: Busy,
}

/// The wait for the bytes that are on the line, in either direction.
#[derive(Default)]
struct Busy(Option<Pin<Box<Sleep>>>);

impl Busy {
    /// Ready once the line is free for this connection.
    fn poll_free(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(until) = &mut self.0 {
            ready!(until.as_mut().poll(context));
            self.0 = None;
        }
        Poll::Ready(())
    }

    fn with(&mut self, bytes: usize, shared: &Shared) {
        if let Some(free) = shared.over_the_line(bytes) {
            self.0 = Some(Box::pin(tokio::time::sleep_until(free.into())));
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.busy.poll_free(context));
        let this = &mut *self;
        let mut piece = [0; PIECE];
        let mut piece = ReadBuf::new(&mut piece[..buffer.remaining().min(PIECE)]);
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut piece))?;
        buffer.put_slice(piece.filled());
        let bytes = piece.filled().len();
        let received = &this.shared.received;
        received.fetch_add(bytes as u64, Ordering::Relaxed);
        this.busy.with(bytes, &this.shared);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.busy.poll_free(context));
        let bytes = match self.shared.settings().rate {
            Some(_) => &bytes[..bytes.len().min(PIECE)],
            None => bytes,
        };
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(bytes)) = written {
            self.shared.sent.fetch_add(bytes as u64, Ordering::Relaxed);
            let this = &mut *self;
            this.busy.with(bytes, &this.shared);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Answers a request. An error ends the connection without an answer.
async fn answer(
    request: Request<Incoming>,
    service: &S3Service,
    shared: &Shared,
) -> io::Result<HttpResponse> {
    let (verb, key) = asked(&request);
    let fault = shared.note(verb, key);
    tokio::time::sleep(shared.settings().latency).await;
    let mut request = request.map(Body::from);
    let stores = matches!(verb, Verb::Put | Verb::UploadPart);
    match &fault {
        Some(Fault::Cut) => return Err(cut()),
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::Hold(Stop::Before, gate)) => pass(gate).await?,
        Some(Fault::Refuse(status, code)) => {
            // Read first: who still writes may not see an answer.
            let body = request.body_mut().store_all_limited(usize::MAX).await;
            body.map_err(io::Error::other)?;
            return Ok(dated(refusal(*status, code, "as told", ""), shared));
        }
        Some(fault) if stores => {
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = harmed(body, fault).await?;
        }
        _ => {}
    }
    let mut response = match refused(&request, shared) {
        Some(refusal) => refusal,
        None => service.call(request).await.map_err(|_| cut())?,
    };
    match &fault {
        Some(Fault::LoseReply) => return Err(cut()),
        // Half a request was enough to refuse it, but nobody is there to hear so.
        Some(Fault::CutBody) if stores => return Err(cut()),
        Some(Fault::Hold(Stop::Done, gate)) => pass(gate).await?,
        Some(fault) if !stores => {
            let body = std::mem::take(response.body_mut());
            *response.body_mut() = harmed(body, fault).await?;
        }
        _ => {}
    }
    Ok(dated(response, shared))
}

fn cut() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionAborted)
}

/// Waits until the test lets a request go on.
async fn pass(gate: &super::Gate) -> io::Result<()> {
    let gate = &gate.0;
    gate.send_if_modified(|held| {
        let comes = *held == Held::NotYet;
        if comes {
            *held = Held::Waiting;
        }
        comes
    });
    let mut changes = gate.subscribe();
    let is_over = |held: &Held| matches!(held, Held::LetGo | Held::Cut);
    match changes.wait_for(is_over).await.map(|held| *held) {
        Ok(Held::LetGo) => Ok(()),
        _ => Err(cut()),
    }
}

/// A body with what a fault does to bodies.
async fn harmed(mut body: Body, fault: &Fault) -> io::Result<Body> {
    if !matches!(fault, Fault::CutBody | Fault::Flip | Fault::Slow(_)) {
        return Ok(body);
    }
    let whole = body.store_all_limited(usize::MAX).await;
    let whole = whole.map_err(io::Error::other)?;
    let middle = whole.len() / 2;
    Ok(match fault {
        Fault::CutBody => streamed(cut_behind(whole.slice(..middle)).boxed()),
        Fault::Flip => {
            let mut bytes = whole.to_vec();
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 0x10;
            }
            Body::from(bytes)
        }
        Fault::Slow(time) => slow(&whole, *time),
        _ => Body::from(whole),
    })
}

/// The bytes, and then an error.
fn cut_behind(bytes: Bytes) -> impl Stream<Item = io::Result<Bytes>> {
    let end = stream::once(async {
        // Meanwhile the bytes go out.
        tokio::time::sleep(Duration::from_millis(5)).await;
        Err(cut())
    });
    stream::iter([Ok(bytes)]).chain(end)
}

/// The bytes, spread over a time.
fn slow(whole: &Bytes, time: Duration) -> Body {
    const PIECES: usize = 16;
    let size = whole.len().div_ceil(PIECES).max(1);
    let pieces: Vec<Bytes> = whole.chunks(size).map(Bytes::copy_from_slice).collect();
    let wait = time / PIECES as u32;
    let pieces = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(wait).await;
        Ok(piece)
    });
    streamed(pieces.boxed())
}

fn streamed(pieces: BoxStream<'static, io::Result<Bytes>>) -> Body {
    // A body must be Sync; nobody polls it from two threads.
    StreamingBlob::wrap(sync_wrapper(pieces)).into()
}

fn sync_wrapper(
    pieces: BoxStream<'static, io::Result<Bytes>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    let pieces = std::sync::Mutex::new(pieces);
    stream::poll_fn(move |context| super::lock(&pieces).poll_next_unpin(context))
}

/// The server's time, where hyper would put the machine's.
fn dated(mut response: HttpResponse, shared: &Shared) -> HttpResponse {
    let micros = u64::try_from(shared.now().micros()).unwrap_or_default();
    let now = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
    let mut date = Vec::new();
    s3s::dto::Timestamp::from(now)
        .format(TimestampFormat::HttpDate, &mut date)
        .unwrap();
    let date = hyper::header::HeaderValue::from_bytes(&date).unwrap();
    response.headers_mut().insert(hyper::header::DATE, date);
    response
}

/// The answer to a request that is signed for another region or another time.
fn refused(request: &Request<Body>, shared: &Shared) -> Option<HttpResponse> {
    let header = |name: &str| request.headers().get(name)?.to_str().ok();
    // Credential=<access key>/<day>/<region>/s3/aws4_request
    let signed = header("authorization")?.split('/').nth(2)?;
    if let Some(region) = shared.settings().region.filter(|region| *region != signed) {
        let message = format!(
            "The authorization header is malformed; the region '{signed}' is wrong; \
             expecting '{region}'"
        );
        let more = format!("<Region>{region}</Region>");
        let code = "AuthorizationHeaderMalformed";
        return Some(refusal(400, code, &message, &more));
    }
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", header("x-amz-date")?).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    let apart = shared.now().micros() / 1_000_000 - time.timestamp().as_second();
    (apart.abs() > SKEW && !shared.settings().any_clock).then(|| {
        let message = "The difference between the request time and the current time is too large.";
        refusal(403, "RequestTimeTooSkewed", message, "")
    })
}

fn refusal(status: u16, code: &str, message: &str, more: &str) -> HttpResponse {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>{message}</Message>{more}<RequestId>TESTS</RequestId></Error>"
    );
    let mut response = HttpResponse::new(Body::from(xml));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let kind = hyper::header::HeaderValue::from_static("application/xml");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}

/// What a request asks for, and of which key.
fn asked(request: &Request<Incoming>) -> (Verb, String) {
    let path = request.uri().path().trim_start_matches('/');
    let key = path.split_once('/').map_or("", |(_, key)| key);
    let query = request.uri().query().unwrap_or_default();
    let value = |name: &str| {
        query.split('&').find_map(|pair| {
            let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
            (found == name).then_some(value)
        })
    };
    let has = |name| value(name).is_some();
    let verb = match (request.method(), key.is_empty()) {
        (&Method::GET, true) if has("uploads") => Verb::ListUploads,
        (&Method::GET, true) if has("list-type") => Verb::List,
        (&Method::POST, true) if has("delete") => Verb::Delete,
        (&Method::GET, false) => Verb::Get,
        (&Method::HEAD, _) => Verb::Head,
        (&Method::PUT, false) if has("uploadId") => Verb::UploadPart,
        (&Method::PUT, false) => Verb::Put,
        (&Method::POST, false) if has("uploads") => Verb::CreateUpload,
        (&Method::POST, false) if has("uploadId") => Verb::CompleteUpload,
        (&Method::DELETE, false) if has("uploadId") => Verb::AbortUpload,
        (&Method::DELETE, false) => Verb::Delete,
        _ => Verb::Other,
    };
    let key = match verb {
        Verb::List | Verb::ListUploads => value("prefix").unwrap_or_default(),
        _ => key,
    };
    (verb, unescaped(key))
}

/// What a part of a URL stands for.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let hex = behind
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
