//! TLS: rustls below HTTP, with a verifier of our own. It takes a certificate that was named (--cacert) as
//! itself, which rustls alone refuses for one that signed itself, and it sees when the certificate ends.

use crate::outcome::{Failure, Reason};
use crate::wire::{Phase, Run, Wire};
use common::error::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore,
    SignatureScheme, StreamOwned,
};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where distributions keep the roots, in one file (`openssl version -d` and its like name these).
const ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `--insecure`
    pub insecure: bool,
    /// `--cacert`
    pub cacert: Option<PathBuf>,
}

/// How connections are made.
#[derive(Debug)]
pub struct Trust {
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
}

/// A connection with TLS.
pub type Secured = Tls;

/// The stream, with an end that is one: many servers close without saying so in TLS.
#[derive(Debug)]
pub struct Tls(StreamOwned<ClientConnection, Wire>);

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            other => other,
        }
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Trust {
    /// Reads the certificates.
    ///
    /// # Errors
    /// A file cannot be read, or holds no certificate.
    pub fn load(wish: &Wish) -> Result<Trust> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut pinned = Vec::new();
        let mut roots = RootCertStore::empty();
        if let Some(path) = &wish.cacert {
            pinned = read(path)?;
            // One that cannot be an issuer may still be the server's own.
            roots.add_parsable_certificates(pinned.iter().cloned());
        } else if !wish.insecure {
            for certificate in system_roots()? {
                // An odd one among hundreds is no reason to refuse the others.
                let _ = roots.add(certificate);
            }
        }
        let inner = if roots.is_empty() {
            None
        } else {
            let builder =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            Some(
                builder
                    .build()
                    .map_err(|why| Error::new("use the certificates", why))?,
            )
        };
        let verifier = Arc::new(Verifier {
            inner,
            pinned,
            insecure: wish.insecure,
            algorithms: provider.signature_verification_algorithms,
            seen: Mutex::new(None),
        });
        let mut config = versions(provider)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        // A resumed session shows no certificate, which might have ended meanwhile.
        config.resumption = Resumption::disabled();
        Ok(Trust {
            config: Arc::new(config),
            verifier,
        })
    }
}

fn versions(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| Error::new("use TLS", why))
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let doing = format!("read {}", path.display());
    let text =
        std::fs::read(path).map_err(|why| Error::new(&doing, common::error::describe(&why)))?;
    let list: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(Error::new(&doing, "it holds no certificate in PEM")),
        Err(why) => Err(Error::new(&doing, why)),
    }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>> {
    if let Some(path) = std::env::var_os("SSL_CERT_FILE") {
        return read(Path::new(&path));
    }
    match ROOTS.iter().map(Path::new).find(|path| path.exists()) {
        Some(path) => read(path),
        None => Err(Error::new(
            "find the system's certificates",
            "the package ca-certificates, --cacert, SSL_CERT_FILE or --insecure would do",
        )),
    }
}

/// Negotiates TLS over a connection.
///
/// # Errors
/// The failure stands among the run's facts.
pub fn handshake(trust: &Trust, name: &str, mut wire: Wire) -> io::Result<Secured> {
    let run = wire.run().clone();
    run.facts().phase = Phase::Tls;
    let name = ServerName::try_from(name.to_owned()).map_err(|_| {
        run.fail(Failure::new(
            Reason::Tls,
            format!("'{name}' is no name for TLS"),
        ))
    })?;
    let mut connection = ClientConnection::new(trust.config.clone(), name)
        .map_err(|why| run.fail(Failure::new(Reason::Tls, why.to_string())))?;
    *trust.verifier.seen() = None;
    while connection.is_handshaking() {
        if let Err(why) = connection.complete_io(&mut wire) {
            return Err(explain(trust, &run, &why));
        }
    }
    let mut facts = run.facts();
    facts.cert_end = *trust.verifier.seen();
    facts.phase = Phase::Silent;
    facts.received = 0;
    drop(facts);
    Ok(Tls(StreamOwned::new(connection, wire)))
}

fn explain(trust: &Trust, run: &Run, why: &io::Error) -> io::Error {
    let (first, eof) = {
        let facts = run.facts();
        (facts.first.clone(), facts.eof)
    };
    let inner = why
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let failure = match inner {
        _ if first.starts_with(b"HTTP/") => Failure::new(
            Reason::Tls,
            "the server speaks plain HTTP: http:// would do",
        ),
        Some(rustls::Error::InvalidCertificate(why)) => {
            let end = trust.verifier.seen().map(common::event::rfc3339);
            let day = end
                .as_deref()
                .and_then(|end| end.split('T').next())
                .unwrap_or("?");
            let words = match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    format!("it ended on {day}")
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    "it is for another name (--host would do)".to_owned()
                }
                CertificateError::UnknownIssuer => {
                    "its issuer is unknown (--cacert would do)".to_owned()
                }
                other => other.to_string(),
            };
            Failure::new(Reason::Cert, words)
        }
        Some(why) => Failure::new(Reason::Tls, why.to_string()),
        None if eof => Failure::new(Reason::Tls, "closed during the handshake"),
        None => Failure::new(Reason::Tls, why.to_string()),
    };
    // A timeout or a reset stands there already, and stays.
    run.fail(failure)
}

#[derive(Debug)]
struct Verifier {
    inner: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    insecure: bool,
    algorithms: WebPkiSupportedAlgorithms,
    /// The end of the certificate that was shown last, since 1970.
    seen: Mutex<Option<Duration>>,
}

impl Verifier {
    fn seen(&self) -> std::sync::MutexGuard<'_, Option<Duration>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let end = not_after(end_entity);
        *self.seen() = end;
        if self.insecure {
            return Ok(ServerCertVerified::assertion());
        }
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            // It is the very one; only its time can have run out.
            return match end {
                Some(end) if end.as_secs() < now.as_secs() => {
                    Err(rustls::Error::InvalidCertificate(CertificateError::Expired))
                }
                Some(_) => Ok(ServerCertVerified::assertion()),
                None => Err(rustls::Error::InvalidCertificate(
                    CertificateError::BadEncoding,
                )),
            };
        }
        match &self.inner {
            Some(inner) => {
                inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer,
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The notAfter of a certificate (RFC 5280 4.1): Certificate { tbsCertificate { [0] version OPTIONAL,
/// serialNumber, signature, issuer, validity { notBefore, notAfter }, ... } }, since 1970.
fn not_after(der: &[u8]) -> Option<Duration> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (tag, certificate, _) = element(der)?;
    let (inner, tbs, _) = element(certificate)?;
    if (tag, inner) != (SEQUENCE, SEQUENCE) {
        return None;
    }
    let mut rest = tbs;
    if rest.first() == Some(&VERSION) {
        rest = element(rest)?.2;
    }
    for _ in ["serialNumber", "signature", "issuer"] {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (_, _, after_first) = element(validity)?;
    let (tag, text, _) = element(after_first)?;
    time(tag, text)
}

/// The first element: its tag, its content, what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        let length = digits
            .iter()
            .fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
        (length, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// UTCTime (YYMMDDHHMMSSZ, 1950 to 2049) or GeneralizedTime (YYYYMMDDHHMMSSZ).
fn time(tag: u8, text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        0x17 if text.len() == 12 => {
            let year: i64 = text[..2].parse().ok()?;
            (
                if year < 50 { 2000 + year } else { 1900 + year },
                &text[2..],
            )
        }
        0x18 if text.len() == 14 => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days from the civil calendar, in years that begin on 1 March.
    let shifted = if month > 2 { year } else { year - 1 };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_of_certificates() {
        let at = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(time(0x17, b"700101000000Z"), at(0));
        assert_eq!(time(0x18, b"20000229000000Z"), at(951_782_400));
        assert_eq!(time(0x17, b"261231235959Z"), at(1_798_761_599));
        for text in [
            &b""[..],
            b"Z",
            b"7001010000Z",
            b"70010100000xZ",
            b"700001000000Z",
            b"500101000000Z",
        ] {
            assert_eq!(time(0x17, text), None);
        }
    }

    #[test]
    fn what_is_no_certificate_is_none_and_nothing_worse() {
        for der in [
            &b""[..],
            b"\x30",
            b"\x30\x84\xff\xff\xff\xff",
            b"\x30\x80",
            b"\x30\x02\x30\x00",
        ] {
            assert_eq!(not_after(der), None);
        }
        // version, serial, signature, issuer, validity.
        let der = b"\x30\x2e\x30\x2c\xa0\x03\x02\x01\x02\x02\x01\x01\x30\x00\x30\x00\x30\x1e\
                    \x17\x0d700101000000Z\x17\x0d261231235959Z";
        assert_eq!(not_after(der), Some(Duration::from_secs(1_798_761_599)));
        for cut in 0..der.len() - 1 {
            let _ = not_after(&der[..cut]);
        }
    }

    /// An element of DER, its length written as shortly as it can be.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut out = vec![tag];
        if length < 0x80 {
            out.push(length as u8);
        } else {
            let digits = length.to_be_bytes();
            let digits: Vec<u8> = digits.into_iter().skip_while(|digit| *digit == 0).collect();
            out.push(0x80 | digits.len() as u8);
            out.extend(digits);
        }
        out.extend(content);
        out
    }

    fn certificate(version: bool, filling: &[u8], end: (u8, &str)) -> Vec<u8> {
        let mut parts = Vec::new();
        if version {
            parts.extend(der(0xa0, &der(2, &[2])));
        }
        // Serial number, signature, issuer: whatever stands in them.
        for tag in [2, 0x30, 0x30] {
            parts.extend(der(tag, filling));
        }
        let begin = der(0x17, b"700101000000Z");
        parts.extend(der(0x30, &[begin, der(end.0, end.1.as_bytes())].concat()));
        parts.extend(der(0x30, filling));
        der(0x30, &[der(0x30, &parts), der(0x30, filling)].concat())
    }

    proptest! {
        #[test]
        fn its_end_is_found(seconds in 0u64..253_402_300_800, version in any::<bool>(), filling in prop::collection::vec(any::<u8>(), 0..300)) {
            let end = Duration::from_secs(seconds);
            let digits: String = common::event::rfc3339(end)
                .split('.').next().unwrap()
                .chars().filter(char::is_ascii_digit).collect();
            let general = certificate(version, &filling, (0x18, &format!("{digits}Z")));
            assert_eq!(not_after(&general), Some(end));
            let utc = certificate(version, &filling, (0x17, &format!("{}Z", &digits[2..])));
            if seconds < 2_524_608_000 {
                // Until 2049.
                assert_eq!(not_after(&utc), Some(end));
            }
        }

        #[test]
        fn bytes_are_never_worse_than_no_certificate(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            filling in prop::collection::vec(any::<u8>(), 0..200),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            text in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let _ = not_after(&bytes);
            let mut der = certificate(true, &filling, (0x17, "261231235959Z"));
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            let _ = not_after(&der);
            der.truncate(cut.index(der.len() + 1));
            let _ = not_after(&der);
            for tag in [0x17, 0x18] {
                let _ = time(tag, &text);
            }
        }
    }
}
