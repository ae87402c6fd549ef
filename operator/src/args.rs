//! The command line: what the operator is told by its Deployment. Every flag has an environment variable.

use clap::Parser;

/// Controller of Serin: runs the revisions of InferenceServices and moves traffic between them.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Image of the routers, as in `registry.example/serin:v1`
    #[arg(long, env = "SERIN_ROUTER_IMAGE", value_parser = image)]
    pub router_image: String,

    /// Image of the model servers
    #[arg(long, env = "SERIN_RUNTIME_IMAGE", value_parser = image)]
    pub runtime_image: String,

    /// When nodes pull these images
    #[arg(long, env = "SERIN_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: String,

    /// Namespaces to serve, separated by commas; empty: all
    #[arg(long, env = "WATCH_NAMESPACES", default_value = "", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,

    /// The operator's own namespace, which holds the lease [default: the one of the current context]
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: Option<String>,

    /// The operator's name as holder of the lease: the pod's, so that a restarted container goes on at once
    #[arg(long, env = "POD_NAME", default_value = "serin-operator")]
    pub pod_name: String,

    /// Port of /livez, /readyz and /metrics
    #[arg(long, env = "SERIN_ADMIN_PORT", default_value_t = 8080)]
    pub admin_port: u16,
}

impl Args {
    /// The namespaces to serve; empty: all.
    pub fn namespaces(&self) -> Vec<String> {
        let named = self.watch_namespaces.iter().map(|name| name.trim().to_owned());
        let mut named: Vec<String> = named.filter(|name| !name.is_empty()).collect();
        named.sort();
        named.dedup();
        named
    }

    /// What children are built from.
    pub fn settings(&self) -> Settings {
        Settings {
            router_image: self.router_image.clone(),
            runtime_image: self.runtime_image.clone(),
            image_pull_policy: self.image_pull_policy.clone(),
        }
    }
}

/// What children are built from, beside the InferenceService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the routers.
    pub router_image: String,
    /// Image of the model servers; `runtimeVersion` replaces its tag.
    pub runtime_image: String,
    /// `imagePullPolicy` of both.
    pub image_pull_policy: String,
}

impl Settings {
    /// The runtime's image with another tag.
    pub fn runtime_image_at(&self, version: Option<&str>) -> String {
        let Some(version) = version else { return self.runtime_image.clone() };
        let name = self.runtime_image.split('@').next().unwrap_or(&self.runtime_image);
        // A colon before the last slash belongs to the registry's port.
        let path = name.rfind('/').map_or(0, |slash| slash + 1);
        let end = name[path..].find(':').map_or(name.len(), |colon| path + colon);
        format!("{}:{version}", &name[..end])
    }
}

fn image(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(format!("expected an image such as registry.example/serin:v1, got `{text}`"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn namespaces_are_a_set() {
        let given = ["x", "--router-image=a", "--runtime-image=b", "--watch-namespaces", "b, a,,b"];
        assert_eq!(Args::parse_from(given).namespaces(), ["a", "b"]);
        let none = Args::parse_from(["x", "--router-image=a", "--runtime-image=b", "--watch-namespaces", ""]);
        assert!(none.namespaces().is_empty());
        assert!(Args::try_parse_from(["x", "--router-image=", "--runtime-image=b"]).is_err());
    }

    #[test]
    fn a_runtime_version_replaces_the_tag() {
        let check = |image: &str, version: Option<&str>, expect: &str| {
            let settings = Settings {
                router_image: String::new(),
                runtime_image: image.to_owned(),
                image_pull_policy: String::new(),
            };
            assert_eq!(settings.runtime_image_at(version), expect);
        };
        check("localhost:5000/serin-runtime:dev", None, "localhost:5000/serin-runtime:dev");
        check("localhost:5000/serin-runtime:dev", Some("v2"), "localhost:5000/serin-runtime:v2");
        check("localhost:5000/serin-runtime", Some("v2"), "localhost:5000/serin-runtime:v2");
        check("serin-runtime:v1@sha256:00", Some("v2"), "serin-runtime:v2");
    }
}
