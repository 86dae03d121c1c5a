//! HTTP: the request, and what its reply means. The library that speaks it is ureq; the connection below
//! it is ours (wire.rs), through ureq's transport API, which is not under semver: this is the only file
//! that knows it, and the version is pinned.

use crate::expect::Expect;
use crate::outcome::{Failure, Outcome, Reason, Verdict, short, shown};
use crate::url::{Endpoint, Url};
use crate::wire::{Family, Phase, Resolver, Run, Wire};
use regex_lite::Regex;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use ureq::Agent;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The head of a reply may be that long, in bytes; ureq itself refuses more than 128 headers.
const MOST_HEAD: usize = 64 << 10;
/// The buffers grow by that much, in bytes: most replies fit into one.
const STEP: usize = 4 << 10;

/// One HTTP check.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it goes, and the path.
    pub url: Url,
    /// Where it connects, if elsewhere than the URL says (a unix socket).
    pub endpoint: Endpoint,
    /// `-4`, `-6`
    pub family: Family,
    /// `--method`
    pub method: String,
    /// `--header`: names and values.
    pub headers: Vec<(String, String)>,
    /// `--host`
    pub host: Option<String>,
    /// `--expect`
    pub expect: Expect,
    /// `--body`
    pub body: Option<Regex>,
    /// `--not-body`
    pub not_body: Option<Regex>,
    /// `--max-body`, in bytes.
    pub max_body: usize,
    /// `--follow`
    pub follow: u32,
    /// `--cert-warn`
    pub cert_warn: Option<Duration>,
}

/// How a TLS connection is made; changed by HUP.
#[cfg(feature = "tls")]
pub type Trust = Arc<crate::tls::Trust>;
/// Without the feature nobody can have one.
#[cfg(not(feature = "tls"))]
pub type Trust = Arc<()>;

/// Something that can be asked again and again.
#[derive(Debug)]
pub struct Client {
    request: Request,
    agent: Agent,
    line: Arc<Line>,
}

/// What the connector needs, and the run that it works for.
#[derive(Debug)]
struct Line {
    endpoint: Endpoint,
    family: Family,
    resolver: Resolver,
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    server_name: String,
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    trust: Mutex<Option<Trust>>,
    run: Mutex<Option<Run>>,
}

impl Line {
    fn trust(&self) -> MutexGuard<'_, Option<Trust>> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> Result<Run, ureq::Error> {
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        run.clone().ok_or(ureq::Error::ConnectionFailed)
    }
}

impl Client {
    /// A client for one check.
    #[must_use]
    pub fn new(request: Request, resolver: Resolver, trust: Option<Trust>) -> Client {
        let host = request.host.clone();
        // --host may carry a port, which a certificate does not.
        let server_name = host.map_or_else(
            || request.url.host.clone(),
            |host| match host.rsplit_once(':') {
                Some((name, port)) if port.parse::<u16>().is_ok() => name.to_owned(),
                _ => host,
            },
        );
        let server_name = server_name.trim_matches(['[', ']']).to_owned();
        let line = Arc::new(Line {
            endpoint: request.endpoint.clone(),
            family: request.family,
            resolver,
            server_name,
            trust: Mutex::new(trust),
            run: Mutex::new(None),
        });
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .max_response_header_size(MOST_HEAD)
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .allow_non_standard_methods(true)
            .user_agent(concat!("heartbeat/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .build();
        let agent = Agent::with_parts(config, Plug(line.clone()), NoResolver);
        Client {
            request,
            agent,
            line,
        }
    }

    /// From now on trusts what is in `trust`, where it has to trust anybody.
    pub fn trust(&self, trust: &Trust) {
        if self.request.url.tls {
            *self.line.trust() = Some(trust.clone());
        }
    }

    /// Another one that asks the same.
    #[must_use]
    pub fn again(&self) -> Client {
        let trust = self.line.trust().clone();
        Client::new(self.request.clone(), self.line.resolver.clone(), trust)
    }

    /// One check, from the name to the verdict; it takes no longer than its limit. A good-bye is left to do:
    /// see [`crate::wire::part`].
    #[must_use]
    pub fn check(&self, run: &Run) -> Outcome {
        *self.line.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.clone());
        let result = self.ask(run);
        let latency = run.start.elapsed();
        let mut facts = run.facts();
        let address = facts.address.take();
        let status = result
            .as_ref()
            .map_or_else(|(status, _)| *status, |status| Some(*status));
        let verdict = match result {
            // What was decided after the limit was not decided in time.
            Ok(_) if latency > run.limit => {
                drop(facts);
                let failure = run.timed_out();
                facts = run.facts();
                Verdict::Failed(failure)
            }
            Ok(_) => self.certificate(facts.cert_end),
            Err((_, failure)) => match facts.ours.take() {
                Some(ours) => Verdict::Unknown(ours),
                None => Verdict::Failed(failure),
            },
        };
        drop(facts);
        Outcome {
            verdict,
            status,
            latency,
            address,
        }
    }

    fn certificate(&self, end: Option<Duration>) -> Verdict {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        match (end, self.request.cert_warn) {
            (Some(end), Some(warn)) if end < now + warn => {
                let day = common::event::rfc3339(end);
                let day = day.split('T').next().unwrap_or_default();
                Verdict::Warning(format!("the certificate ends on {day}"))
            }
            _ => Verdict::Well,
        }
    }

    /// Asks, follows, reads.
    fn ask(&self, run: &Run) -> Result<u16, (Option<u16>, Failure)> {
        let mut url = self.request.url.clone();
        let mut hops = 0;
        loop {
            let response = self.send(&url).map_err(|why| (None, explain(run, why)))?;
            let status = response.status().as_u16();
            let failed = |failure| (Some(status), failure);
            run.facts().phase = Phase::Body;
            let location = response
                .headers()
                .get("location")
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            if let (true, Some(location)) = (
                self.request.follow > 0 && (300..400).contains(&status),
                location,
            ) {
                hops += 1;
                let refuse = |what: &str| {
                    let to = shown(location.as_bytes());
                    failed(Failure::new(
                        Reason::Status,
                        format!("{status} to {to}: {what}"),
                    ))
                };
                let next = url.join(&location).map_err(|_| refuse("cannot be read"))?;
                if (next.tls, &next.host, next.port) != (url.tls, &url.host, url.port) {
                    return Err(refuse("another host, which --follow does not go to"));
                }
                if hops > self.request.follow {
                    return Err(refuse(&format!(
                        "more than {} redirects",
                        self.request.follow
                    )));
                }
                self.read(run, response).map_err(failed)?;
                url = next;
                let mut facts = run.facts();
                facts.spent = None;
                facts.eof = false;
                facts.received = 0;
                continue;
            }
            if !self.request.expect.takes(status) {
                return Err(failed(Failure::new(Reason::Status, status.to_string())));
            }
            let body = self.read(run, response).map_err(failed)?;
            self.match_body(&body).map_err(failed)?;
            return Ok(status);
        }
    }

    fn send(&self, url: &Url) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = ureq::http::Request::builder()
            .method(self.request.method.as_str())
            .uri(url.text());
        // One connection for each check: one that was kept might have died since.
        let own = |(name, _): &(String, String)| name.eq_ignore_ascii_case("connection");
        if !self.request.headers.iter().any(own) {
            request = request.header("connection", "close");
        }
        if let Some(host) = &self.request.host {
            request = request.header("host", host);
        }
        for (name, value) in &self.request.headers {
            request = request.header(name, value);
        }
        self.agent.run(request.body(())?)
    }

    /// The body, as far as it is needed: to its end, to the cap, or to the match.
    fn read(
        &self,
        run: &Run,
        response: ureq::http::Response<ureq::Body>,
    ) -> Result<Vec<u8>, Failure> {
        let most = self.request.max_body;
        let mut body = Vec::new();
        let mut reader = response.into_body().into_reader();
        let mut buffer = [0u8; STEP];
        loop {
            let room = buffer.len().min(most - body.len());
            if room == 0 {
                // There may be more, which nobody wants to see.
                return self.capped(body);
            }
            match reader.read(&mut buffer[..room]) {
                Ok(0) => return Ok(body),
                Ok(count) => body.extend_from_slice(&buffer[..count]),
                Err(why) => return Err(explain(run, ureq::Error::Io(why))),
            }
            let only_body = self.request.not_body.is_none();
            if let (Some(wanted), true) = (&self.request.body, only_body) {
                if wanted.is_match(&String::from_utf8_lossy(&body)) {
                    return Ok(body);
                }
            }
        }
    }

    fn capped(&self, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
        match &self.request.body {
            Some(wanted) if !wanted.is_match(&String::from_utf8_lossy(&body)) => Err(Failure::new(
                Reason::Body,
                format!("no match in the first {} bytes", body.len()),
            )),
            Some(_) | None => Ok(body),
        }
    }

    fn match_body(&self, body: &[u8]) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(body);
        if let Some(wanted) = &self.request.body {
            if !wanted.is_match(&text) {
                let detail = format!("no match in {} bytes: {}", body.len(), shown(body));
                return Err(Failure::new(Reason::Body, detail));
            }
        }
        if let Some(found) = self.request.not_body.as_ref().and_then(|re| re.find(&text)) {
            let found = shown(found.as_str().as_bytes());
            return Err(Failure::new(Reason::Body, format!("{found} was found")));
        }
        Ok(())
    }
}

/// What an error of the library means, by what our own connection knows of it.
fn explain(run: &Run, why: ureq::Error) -> Failure {
    let mut facts = run.facts();
    if let Some(fault) = facts.fault.take() {
        return fault;
    }
    let first = &facts.first;
    // A record of TLS: alert or handshake, version 3.
    if matches!(first.as_slice(), [0x15 | 0x16, 3, ..]) && facts.cert_end.is_none() {
        return Failure::new(Reason::Tls, "the server speaks TLS: https:// would do");
    }
    let inner = match &why {
        ureq::Error::Io(io) => io
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<ureq::Error>())
            .unwrap_or(&why),
        _ => &why,
    };
    match inner {
        ureq::Error::LargeResponseHeader(..) => {
            let limit = MOST_HEAD >> 10;
            Failure::new(
                Reason::Protocol,
                format!("header too large (over {limit}K)"),
            )
        }
        ureq::Error::Protocol(why) => {
            let text = why.to_string();
            if text.to_lowercase().contains("too many headers") {
                return Failure::new(Reason::Protocol, "header too large (over 128 lines)");
            }
            if facts.phase == Phase::Body {
                return Failure::new(Reason::Protocol, text);
            }
            if first.starts_with(b"HTTP/1.") {
                return Failure::new(Reason::Protocol, text);
            }
            Failure::new(Reason::Protocol, format!("not HTTP, got {}", shown(first)))
        }
        why => {
            let text = why.to_string();
            if facts.eof || text.contains("disconnected") {
                if !first.is_empty() && facts.phase == Phase::Head && !first.starts_with(b"HTTP/") {
                    let got = shown(first);
                    return Failure::new(Reason::Protocol, format!("not HTTP, got {got}"));
                }
                let received = facts.received;
                let detail = if received == 0 {
                    "closed without a reply".to_owned()
                } else {
                    format!("closed after {received} bytes, before the reply was whole")
                };
                return Failure::new(Reason::Eof, detail);
            }
            Failure::new(
                Reason::Protocol,
                format!("{text} ({})", short(run.start.elapsed())),
            )
        }
    }
}

/// ureq's connector.
#[derive(Debug)]
struct Plug(Arc<Line>);

impl Connector<()> for Plug {
    type Out = Pipe;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Pipe>, ureq::Error> {
        let line = &self.0;
        let run = line.run()?;
        let wire = Wire::connect(&line.endpoint, line.family, &line.resolver, &run)?;
        let channel = if details.needs_tls() {
            secured(line, wire)?
        } else {
            Channel::Plain(wire)
        };
        Ok(Some(Pipe {
            channel,
            buffers: Growing::default(),
        }))
    }
}

#[cfg(feature = "tls")]
fn secured(line: &Line, wire: Wire) -> Result<Channel, ureq::Error> {
    // The lock is not held while the peer takes its time: the loop may want to change what is in it.
    let trust = line.trust().clone();
    let Some(trust) = trust else {
        return Err(ureq::Error::TlsRequired);
    };
    let stream = crate::tls::handshake(&trust, &line.server_name, wire)?;
    Ok(Channel::Tls(Box::new(stream)))
}

#[cfg(not(feature = "tls"))]
fn secured(_: &Line, _: Wire) -> Result<Channel, ureq::Error> {
    Err(ureq::Error::TlsRequired)
}

#[derive(Debug)]
enum Channel {
    Plain(Wire),
    #[cfg(feature = "tls")]
    Tls(Box<crate::tls::Secured>),
}

/// ureq's transport.
#[derive(Debug)]
struct Pipe {
    channel: Channel,
    buffers: Growing,
}

impl Transport for Pipe {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let output = self.buffers.output.get(..amount).unwrap_or_default();
        match &mut self.channel {
            Channel::Plain(wire) => wire.write_all(output)?,
            #[cfg(feature = "tls")]
            Channel::Tls(stream) => {
                stream.write_all(output)?;
                stream.flush()?;
            }
        }
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let buffer = self.buffers.input_append_buf();
        let count = match &mut self.channel {
            Channel::Plain(wire) => wire.read(buffer)?,
            #[cfg(feature = "tls")]
            Channel::Tls(stream) => stream.read(buffer)?,
        };
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        match self.channel {
            Channel::Plain(_) => false,
            #[cfg(feature = "tls")]
            Channel::Tls(_) => true,
        }
    }
}

/// Buffers as large as they need to be: the library's own would be filled with zeroes for each check, to
/// the size of the largest head that is allowed.
#[derive(Debug, Default)]
struct Growing {
    output: Vec<u8>,
    input: Vec<u8>,
    from: usize,
    to: usize,
    progress: bool,
}

impl Growing {
    fn make_room(&mut self) {
        if self.from > 0 {
            self.input.copy_within(self.from..self.to, 0);
            self.to -= self.from;
            self.from = 0;
        }
        // Beyond the largest head there is always a little room, so that the library sees that it is too
        // large, and not an end.
        if self.input.len() - self.to < STEP {
            self.input.resize(self.to + STEP, 0);
        }
    }
}

impl Buffers for Growing {
    fn output(&mut self) -> &mut [u8] {
        if self.output.len() < 2 * STEP {
            self.output.resize(2 * STEP, 0);
        }
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.from..self.to]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.make_room();
        &mut self.input[self.to..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.to = (self.to + amount).min(self.input.len());
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.from = (self.from + amount).min(self.to);
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.make_room();
        if self.output.len() < 2 * STEP {
            self.output.resize(2 * STEP, 0);
        }
        (&mut self.input[self.to..], &mut self.output)
    }

    fn can_use_input(&self) -> bool {
        self.from < self.to && self.progress
    }
}

/// Names are looked up by the connection, within its time.
#[derive(Debug)]
struct NoResolver;

impl UreqResolver for NoResolver {
    fn resolve(
        &self,
        _: &ureq::http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}
