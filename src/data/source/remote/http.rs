//! The HTTP client below `object_store`, and what its failures mean.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::StatusCode;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use rustls_platform_verifier::BuilderVerifierExt;

use super::super::{SourceOptions, redact};

/// Stands for the length of an answer that does not tell it.
pub(super) const UNKNOWN_LENGTH: u64 = 1 << 62;
/// Longest pause that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The client of all shards of a list. It is ours, not `object_store`'s, so that the certificates
/// are the system's, the cryptography is ring (no C to build), and a status arrives here as it is:
/// with the pause that the server asks for, and without its body being read.
pub(super) fn client(options: &SourceOptions) -> Result<reqwest::Client, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_platform_verifier())
        .map_err(|e| format!("TLS: {e}"))?
        .with_no_client_auth();
    // A chunk has a connection to itself: HTTP/2 would put them all through one, in windows of
    // 64 KiB.
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .connect_timeout(options.connect_timeout)
        .user_agent(concat!("roclip/", env!("CARGO_PKG_VERSION")));
    client.build().map_err(|e| root_cause(&e))
}

/// What carries the requests of a store.
#[derive(Clone, Debug)]
pub(super) struct Service {
    client: reqwest::Client,
    authorization: Option<HeaderValue>,
}

impl Service {
    pub(super) fn new(client: reqwest::Client) -> Self {
        Self { client, authorization: None }
    }

    /// For the one URL: what carries its requests, and the URL without user and password, which
    /// became a header.
    ///
    /// # Errors
    /// It is no URL.
    pub(super) fn for_url(client: reqwest::Client, url: &str) -> Result<(Self, String), String> {
        let request = client.get(url).build().map_err(|e| root_cause(&e))?;
        let authorization = request.headers().get(AUTHORIZATION).cloned();
        Ok((Self { client, authorization }, request.url().to_string()))
    }
}

impl HttpConnector for Service {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Service {
    fn call<'life, 'future>(
        &'life self,
        mut request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'future>>
    where
        'life: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            if let Some(value) = &self.authorization {
                request.headers_mut().insert(AUTHORIZATION, value.clone());
            }
            let asks_for_part = request.headers().contains_key(RANGE);
            let mut response = self.client.call(request).await?;
            let status = response.status();
            if !status.is_success() {
                return Err(refusal(Refusal::new(status, response.headers())));
            }
            if asks_for_part && status == StatusCode::OK {
                return Err(refusal(NoRanges));
            }
            // Where the answer says itself where it ends, its length may be missing.
            let framed = response.headers().contains_key(TRANSFER_ENCODING);
            if framed && !response.headers().contains_key(CONTENT_LENGTH) {
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(UNKNOWN_LENGTH));
            }
            Ok(response)
        })
    }
}

fn refusal(reason: impl Error + Send + Sync + 'static) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, reason)
}

/// The server knows no ranges: it answers with everything.
#[derive(Debug, thiserror::Error)]
#[error("the server answered with the whole file where a part was asked for")]
struct NoRanges;

/// The server answered, but not with what was asked for.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    wait: Duration,
    region: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let seconds = text(RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
        Self {
            status,
            wait: Duration::from_secs(seconds.unwrap_or(0)).min(MAX_WAIT),
            region: text("x-amz-bucket-region").map(Into::into),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        match &self.region {
            Some(region) if self.status.is_redirection() => {
                write!(f, ": the bucket is in another region; set AWS_REGION={region}")
            }
            _ => Ok(()),
        }
    }
}

impl Error for Refusal {}

/// Why bytes did not come.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may go better next time, but not before the server's own pause is over.
    Passing { detail: String, wait: Duration },
    /// It will not.
    Final(String),
    /// Only the whole file can be had.
    NoRanges,
    /// There are no bytes at that place.
    BeyondEnd,
    /// It needs credentials, or others.
    Denied(String),
}

impl Failure {
    pub(super) fn passing(detail: impl Into<String>) -> Self {
        Self::Passing { detail: detail.into(), wait: Duration::ZERO }
    }

    /// For a person; `hint` says where credentials come from.
    pub(super) fn text(self, hint: &str) -> String {
        match self {
            Self::Passing { detail, .. } | Self::Final(detail) => detail,
            Self::Denied(detail) => format!("{detail}{hint}"),
            Self::BeyondEnd => "it became shorter while being read".into(),
            Self::NoRanges => NoRanges.to_string(),
        }
    }

    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        for cause in chain(error) {
            if cause.is::<NoRanges>() {
                return Self::NoRanges;
            }
            if let Some(refusal) = cause.downcast_ref::<Refusal>() {
                let detail = refusal.to_string();
                return match refusal.status {
                    StatusCode::RANGE_NOT_SATISFIABLE => Self::BeyondEnd,
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Denied(detail),
                    StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                        Self::Passing { detail, wait: refusal.wait }
                    }
                    status if status.is_server_error() => {
                        Self::Passing { detail, wait: refusal.wait }
                    }
                    _ => Self::Final(detail),
                };
            }
        }
        let detail = root_cause(error);
        // The words of Rust's standard library, and of the C libraries where it is only an
        // overloaded name server.
        let passes = ["Temporary failure", "Try again"].iter().any(|text| detail.contains(text));
        if detail.starts_with("failed to lookup address") && !passes {
            return Self::Final(detail);
        }
        Self::passing(detail)
    }
}

type Cause<'a> = &'a (dyn Error + 'static);

fn chain<'a>(error: Cause<'a>) -> impl Iterator<Item = Cause<'a>> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The innermost cause: the layers around it tell the URL, secrets and all, and nothing else.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(|cause| redact(&cause.to_string())).unwrap_or_default()
}
