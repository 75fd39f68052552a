//! Bucket → store with its credentials.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::{ObjectStore, RetryConfig};

use super::super::SourceOptions;
use super::http::{Service, root_cause};

/// What stands in the settings or the environment if requests are to be signed.
const AWS: &[&str] = &[
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_web_identity_token_file",
    "aws_container_credentials_relative_uri",
    "aws_container_credentials_full_uri",
];
const GOOGLE: &[&str] = &[
    "google_service_account",
    "google_service_account_path",
    "google_service_account_key",
    "google_application_credentials",
];
const AZURE: &[&str] = &[
    "azure_storage_account_key",
    "azure_storage_access_key",
    "azure_storage_client_id",
    "azure_client_id",
    "azure_storage_sas_key",
    "azure_storage_sas_token",
    "azure_storage_token",
    "azure_federated_token_file",
    "azure_use_azure_cli",
];

/// A service that keeps buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cloud {
    S3,
    Gs,
    Az,
}

impl Cloud {
    pub(super) fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self::S3),
            "gs" => Some(Self::Gs),
            "az" => Some(Self::Az),
            _ => None,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::S3 => "aws_",
            Self::Gs => "google_",
            Self::Az => "azure_",
        }
    }

    /// Says, behind a refusal, where credentials come from.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::S3 => {
                "; credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from the \
                 role of the machine with AWS_SKIP_SIGNATURE=false"
            }
            Self::Gs => {
                "; credentials come from GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth`, or from \
                 the machine's account with GOOGLE_SKIP_SIGNATURE=false"
            }
            Self::Az => {
                "; credentials come from AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or \
                 from the machine's identity with AZURE_SKIP_SIGNATURE=false"
            }
        }
    }

    /// Whose buckets these are, as far as settings decide it.
    pub(super) fn account(self, options: &SourceOptions) -> String {
        let names: &[&str] = match self {
            Self::S3 => &["aws_endpoint", "aws_endpoint_url", "aws_endpoint_url_s3"],
            Self::Gs => &["google_base_url"],
            Self::Az => &[
                "azure_storage_account_name",
                "azure_storage_endpoint",
                "azure_endpoint",
                "azure_storage_use_emulator",
            ],
        };
        let values = names.iter().map(|name| setting(options, name).unwrap_or_default());
        values.collect::<Vec<_>>().join("\0")
    }

    /// The settings of this service, and whether requests go unsigned: where there are no
    /// credentials, asking for those of the machine would take half a minute to fail elsewhere.
    fn settings(self, options: &SourceOptions) -> Vec<(String, String)> {
        let ours = options.store.0.iter().filter(|(name, _)| name.starts_with(self.prefix()));
        let mut settings: Vec<_> = ours.map(|(k, v)| (k.clone(), v.clone())).collect();
        let is_set = |name: &str| setting(options, name).is_some();
        let skip = format!("{}skip_signature", self.prefix());
        let credentials = match self {
            Self::S3 => AWS,
            Self::Gs => GOOGLE,
            Self::Az => AZURE,
        };
        let is_signed =
            credentials.iter().any(|name| is_set(name)) || self == Self::Gs && has_gcloud_login();
        if !is_signed && !is_set(&skip) {
            settings.push((skip, "true".into()));
        }
        settings
    }
}

fn setting(options: &SourceOptions, name: &str) -> Option<String> {
    let given = options.store.0.get(name).cloned();
    given.or_else(|| std::env::var(name.to_uppercase()).ok())
}

/// Whether `gcloud auth application-default login` left its file.
fn has_gcloud_login() -> bool {
    let file = ".config/gcloud/application_default_credentials.json";
    std::env::home_dir().is_some_and(|home| home.join(file).is_file())
}

/// All retrying is done in `fetch`.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// The store of `url`, which is `scheme://bucket`.
///
/// # Errors
/// A setting is wrong or missing.
pub(super) fn bucket(
    cloud: Cloud,
    url: &str,
    service: Service,
    options: &SourceOptions,
) -> Result<Arc<dyn ObjectStore>, String> {
    macro_rules! build {
        ($builder:ty) => {{
            let mut builder = <$builder>::from_env();
            for (name, value) in cloud.settings(options) {
                let key = name.parse().map_err(|_| format!("no setting is called {name:?}"))?;
                builder = builder.with_config(key, value);
            }
            let builder = builder.with_url(url).with_retry(no_retries());
            let store = builder.with_http_connector(service).build();
            Arc::new(store.map_err(|e| root_cause(&e))?)
        }};
    }
    Ok(match cloud {
        Cloud::S3 => build!(AmazonS3Builder),
        Cloud::Gs => build!(GoogleCloudStorageBuilder),
        Cloud::Az => build!(MicrosoftAzureBuilder),
    })
}

/// A store whose only object, at the empty path, is what this `http(s)` URL names: so any URL can
/// be read, be its path or its query what it may.
///
/// # Errors
/// It is no URL.
pub(super) fn single(url: &str, client: reqwest::Client) -> Result<Arc<dyn ObjectStore>, String> {
    let (service, url) = Service::for_url(client, url)?;
    let builder = HttpBuilder::new().with_url(url).with_retry(no_retries());
    let store = builder.with_http_connector(service).build();
    Ok(Arc::new(store.map_err(|e| root_cause(&e))?))
}
