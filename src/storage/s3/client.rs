//! The S3 client of a bucket: connections, credentials, endpoint and region.
//!
//! Nothing here asks anybody anything before the first use of a store. What a process needs once,
//! its stores share: the connections, and what environment and profile say.

use crate::config::location::{S3Location, parse_endpoint};
use crate::error::Result;
use crate::storage::s3::answer::{Action, Answer, Asked, Failure, SIGNED_AT, Server};
use crate::storage::s3::clock::ServerClock;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig, imds};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Builder, Credentials, HttpClient, IdentityCache, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime;
use tokio::sync::OnceCell;

/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(3);

/// How long an instance may take to give its credentials. Who is no instance waits for nothing.
const INSTANCE: Duration = Duration::from_secs(1);

/// The region that is asked where a bucket lies, and that servers other than AWS are told, if
/// nothing names another one.
const DEFAULT_REGION: &str = "us-east-1";

/// A client, and what messages say of the one that it speaks to.
pub(super) struct Connected {
    /// Speaks to the bucket's region.
    pub(super) client: Client,
    /// Who answers.
    pub(super) server: Server,
    /// Whether uploads carry checksums.
    pub(super) checksums: bool,
}

/// Makes the client of a bucket, whose answers set a clock. Without a request, unless the region
/// must be looked up.
///
/// # Errors
/// Those of the look-up.
pub(super) async fn connect(place: &S3Location, clock: &ServerClock) -> Result<Connected> {
    let shared = shared();
    let Environment { sdk, region } = shared.environment().await;
    let endpoint = match &place.endpoint {
        Some(endpoint) => Some(endpoint.clone()),
        None => endpoint_of_profile(sdk)?,
    };
    let region = match known_region(place, endpoint.is_none(), region) {
        Some(region) => region,
        None => look_up(place, region.clone()).await?,
    };
    Ok(client_in(place, sdk, endpoint, region, clock))
}

/// The region of a bucket, if nobody need be asked. The one that environment or profile name is
/// that of their machine, and of AWS's buckets some lie elsewhere.
fn known_region(place: &S3Location, is_aws: bool, named: &Region) -> Option<Region> {
    match &place.region {
        Some(given) => Some(Region::new(given.clone())),
        None => Some(named.clone()).filter(|_| !is_aws),
    }
}

fn client_in(
    place: &S3Location,
    environment: &SdkConfig,
    endpoint: Option<String>,
    region: Region,
    clock: &ServerClock,
) -> Connected {
    let host = match &endpoint {
        Some(url) => url
            .split("://")
            .last()
            .unwrap_or(url)
            .trim_end_matches('/')
            .to_owned(),
        None => format!("s3.{region}.amazonaws.com"),
    };
    let server = Server {
        bucket: place.bucket.clone(),
        region: region.to_string(),
        host,
    };
    // Either may turn them off.
    let calculation = match place.checksums {
        true => environment.request_checksum_calculation(),
        false => Some(RequestChecksumCalculation::WhenRequired),
    };
    let checksums = calculation != Some(RequestChecksumCalculation::WhenRequired);
    let path_style = place.force_path_style.unwrap_or(endpoint.is_some());
    let mut config = Builder::from(environment)
        .region(region)
        .interceptor(clock.clone())
        // What we read is verified by what wrote it.
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .force_path_style(path_style);
    config.set_request_checksum_calculation(calculation);
    if endpoint.is_some() {
        config.set_endpoint_url(endpoint);
    }
    if let Some(key) = &place.credentials {
        let secret = key.secret_access_key.reveal();
        let credentials = Credentials::new(&key.access_key_id, secret, None, None, "config");
        // The cache is made for those that expire, and for few.
        config.set_identity_cache(IdentityCache::no_cache());
        config = config.credentials_provider(credentials);
    }
    Connected {
        client: Client::from_conf(config.build()),
        server,
        checksums,
    }
}

/// Asks in a region where the bucket lies. AWS says so also when it refuses all else.
pub(super) async fn look_up(place: &S3Location, start: Region) -> Result<Region> {
    let shared = shared();
    let sdk = &shared.environment().await.sdk;
    let endpoint = place.endpoint.clone();
    // The store's clock is set by the request that all this is for.
    let anywhere = client_in(place, sdk, endpoint, start.clone(), &ServerClock::default());
    let asked = Asked::new(Action::LookUp, &place.bucket, &anywhere.server);
    let request = anywhere.client.head_bucket().bucket(&place.bucket).send();
    let found = match asked.within(request).await {
        Ok(answer) => answer.bucket_region,
        Err(Failure::Answered(answer)) if answer.region.is_some() => answer.region,
        // It does not say why, since it answers a HEAD: it will when it is asked for more.
        Err(Failure::Answered(Answer { status: 403, .. })) => None,
        Err(failure) => return Err(asked.explain(failure)),
    };
    Ok(found.map_or(start, Region::new))
}

/// What environment and profile say.
struct Environment {
    /// With the SDK's chain of credentials. Its region is for those alone.
    sdk: SdkConfig,
    /// The region that is named for all buckets, or that of most.
    region: Region,
}

impl Environment {
    async fn load(http: &SharedHttpClient) -> Self {
        // Not the instance's region: the bucket's is looked up, and who is no instance would wait.
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .region()
            .await;
        let region = region.unwrap_or(Region::from_static(DEFAULT_REGION));
        let sdk = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http.clone())
            // For the chain of credentials, which would ask the instance if there were none.
            .region(region.clone())
            .credentials_provider(credentials(http, region.clone()).await)
            // storage/retry.rs retries.
            .retry_config(RetryConfig::disabled())
            // Ours is in `answer.rs`. The SDK's counts the tenths of a second that went by one by
            // one, and hangs when the clock jumps by decades.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .load()
            .await;
        Self { sdk, region }
    }
}

/// The SDK's chain of credentials.
async fn credentials(http: &SharedHttpClient, region: Region) -> DefaultCredentialsChain {
    let config = ProviderConfig::without_region()
        .with_http_client(http.clone())
        .with_region(Some(region.clone()));
    let instance = imds::Client::builder()
        .configure(&config)
        .operation_timeout(INSTANCE);
    DefaultCredentialsChain::builder()
        .configure(config)
        .region(region)
        .imds_client(instance.build())
        .build()
        .await
}

/// The endpoint that the AWS profile names. That of the environment is in the place already.
fn endpoint_of_profile(environment: &SdkConfig) -> Result<Option<String>> {
    let checked = environment.endpoint_url().map(parse_endpoint).transpose();
    checked.map_err(|e| e.context("endpoint_url of the AWS profile"))
}

/// What the stores of a process have in common.
struct Shared {
    http: SharedHttpClient,
    environment: OnceCell<Environment>,
}

impl Shared {
    async fn environment(&self) -> &Environment {
        let load = || Environment::load(&self.http);
        self.environment.get_or_init(load).await
    }
}

/// What this runtime's stores have in common: connections die with the runtime that made them. A
/// process has one runtime, its tests have one each.
fn shared() -> Arc<Shared> {
    static LAST: Mutex<Option<(runtime::Id, Arc<Shared>)>> = Mutex::new(None);
    let here = runtime::Handle::current().id();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some((id, shared)) if *id == here => shared.clone(),
        _ => {
            let shared = Arc::new(Shared {
                http: SharedHttpClient::new(Http(SharedHttpConnector::new(Wires::default()))),
                environment: OnceCell::new(),
            });
            *last = Some((here, shared.clone()));
            shared
        }
    }
}

/// Gives every client the same connections.
#[derive(Debug)]
struct Http(SharedHttpConnector);

impl HttpClient for Http {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        self.0.clone()
    }
}

/// Connections, made when they are first asked for: certificates take time to load, and who speaks
/// plain HTTP needs none.
#[derive(Debug, Default)]
struct Wires {
    plain: OnceLock<Connector>,
    tls: OnceLock<Connector>,
}

impl HttpConnector for Wires {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let wire = if request.uri().starts_with("http:") {
            let without = TlsContext::builder()
                .with_trust_store(TrustStore::empty())
                .build();
            self.plain.get_or_init(|| {
                let without = without.expect("a trust store is all that a context needs");
                connector(without, ProxyConfig::disabled())
            })
        } else {
            let of_system = TlsContext::default;
            self.tls
                .get_or_init(|| connector(of_system(), ProxyConfig::from_env()))
        };
        let signed_at = request.headers().get("x-amz-date").map(str::to_owned);
        let answer = wire.call(request);
        HttpConnectorFuture::new(async move {
            let mut answer = answer.await?;
            if let Some(time) = signed_at {
                answer.headers_mut().insert(SIGNED_AT, time);
            }
            Ok(answer)
        })
    }
}

/// No read timeout: a request as a whole has a deadline, and it depends on its size.
fn connector(context: TlsContext, proxy: ProxyConfig) -> Connector {
    let settings = HttpConnectorSettings::builder()
        .connect_timeout(CONNECT)
        .build();
    Connector::builder()
        .connector_settings(settings)
        // Without it a request that goes out in two pieces waits 40 ms for an acknowledgement.
        .enable_tcp_nodelay(true)
        .proxy_config(proxy)
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::location::Location;

    #[test]
    fn where_a_bucket_of_aws_lies_is_not_taken_from_the_environment() {
        let named = Region::from_static("eu-north-1");
        let known = |url: &str, is_aws| match Location::parse(url) {
            Ok(Location::S3(place)) => known_region(&place, is_aws, &named),
            other => panic!("{url}: {other:?}"),
        };
        assert_eq!(known("s3://bucket", true), None);
        assert_eq!(known("s3://bucket", false), Some(named.clone()));
        for is_aws in [true, false] {
            let given = known("s3://bucket?region=eu-west-1", is_aws);
            assert_eq!(given, Some(Region::from_static("eu-west-1")));
        }
    }
}
