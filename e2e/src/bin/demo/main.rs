//! `make demo`: the main job on a real cluster, live. Brings up what is missing, applies `examples/`, asks magika for the types
//! of real files, rolls out two services under a checked load, breaks a canary on purpose, and leaves everything running.

mod table;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use serin_crds::reasons::conditions;
use serin_e2e::cluster::Cluster;
use serin_e2e::magika::Labels;
use serin_e2e::models;
use serin_e2e::service::{Service, canary, condition};
use serin_e2e::story::{DEMO_NAMESPACE, Story};
use serin_e2e::traffic::pod::Stream;
use serin_e2e::traffic::{Traffic, Verdict, cases};
use table::{Seen, Table};

const IRIS_RATE: f64 = 200.0;
const MAGIKA_RATE: f64 = 10.0;
/// How long each step of the rollout is shown.
const SHOWN: Duration = Duration::from_secs(8);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let began = Instant::now();
    let cluster = Cluster::ready().await?;
    let story = Story::in_namespace(DEMO_NAMESPACE, cluster).await?;
    headline("Two services: iris, a small model with two pods, and magika, which tells the types of files");
    say("kubectl apply -f examples/storage-secret.yaml -f examples/iris.yaml -f examples/magika.yaml");
    story.apply(&["storage-secret", "iris", "magika"]).await?;
    let mut demo = Demo::begin(&story).await?;
    println!("{}", story.kubectl(&["get", "isvc"]).await?);

    headline("Types of real files, by magika");
    types(&demo.magika).await?;

    headline(
        "A new model for each, as a canary, under load: 200 requests/s on iris, 10/s on magika, each answer checked",
    );
    demo.roll_out().await?;
    let verdicts = demo.stop().await?;
    let sent: u64 = verdicts.iter().map(|verdict| verdict.sent).sum();
    let lost: u64 = verdicts.iter().map(|verdict| verdict.lost).sum();
    println!(
        "\nsent {sent}, lost {lost}{}",
        if lost == 0 { format!(" (< 3/{sent})") } else { String::new() }
    );
    for verdict in &verdicts {
        println!("  {verdict}");
        for loss in &verdict.losses {
            println!("    {loss}");
        }
    }
    ensure!(lost == 0, "requests were lost");

    headline("A canary that cannot load: its file is cut off in the middle");
    demo.broken().await?;
    look_around(began.elapsed());
    Ok(())
}

struct Demo<'a> {
    story: &'a Story,
    iris: Service,
    magika: Service,
    traffic: Traffic,
    models: BTreeMap<String, String>,
}

impl<'a> Demo<'a> {
    async fn begin(story: &'a Story) -> anyhow::Result<Self> {
        let (iris, magika) = (Service::new(story, "iris"), Service::new(story, "magika"));
        let image = story.cluster.traffic_image();
        let traffic = Traffic::start(&story.client, &story.namespace, &image);
        let (traffic, _, _) = tokio::try_join!(traffic, iris.ready(), magika.ready())?;
        let (of_iris, of_magika) = tokio::try_join!(iris.settled(), magika.settled())?;
        let models = [(of_iris, "a".to_owned()), (of_magika, "v3_2".to_owned())].into();
        Ok(Self { story, iris, magika, traffic, models })
    }

    async fn load(&self, service: &Service, rate: f64) -> anyhow::Result<()> {
        let name = service.name.as_str();
        let requests = if name == "magika" { cases::magika } else { cases::iris };
        let stream = Stream {
            name,
            service: name,
            target: service.address().await?,
            rate,
            timeout: Duration::from_secs(30),
            cases: requests(&models(), name)?,
        };
        self.traffic.load(stream).await
    }

    /// 10 → 50 → promote, both services at once.
    async fn roll_out(&mut self) -> anyhow::Result<()> {
        self.load(&self.iris, IRIS_RATE).await?;
        self.load(&self.magika, MAGIKA_RATE).await?;
        let (began, mut table) = (Instant::now(), Table::new());
        self.show(&mut table, began).await?;

        say(
            "kubectl apply -f examples/iris-canary.yaml -f examples/magika-canary.yaml      # canaryTrafficPercent: 10",
        );
        self.story.apply(&["iris-canary", "magika-canary"]).await?;
        let (of_iris, of_magika) = tokio::try_join!(self.iris.share(10), self.magika.share(10))?;
        self.models.extend([(of_iris, "b".to_owned()), (of_magika, "v3_3".to_owned())]);
        self.step(&mut table, began, "10 %").await?;

        say(
            "kubectl patch isvc iris magika --type merge -p '{\"spec\":{\"predictor\":{\"canaryTrafficPercent\":50}}}'",
        );
        tokio::try_join!(self.iris.ask(Some(50)), self.magika.ask(Some(50)))?;
        tokio::try_join!(self.iris.share(50), self.magika.share(50))?;
        self.step(&mut table, began, "50 %").await?;

        say(
            "kubectl patch isvc iris magika --type merge -p '{\"spec\":{\"predictor\":{\"canaryTrafficPercent\":100}}}'",
        );
        tokio::try_join!(self.iris.ask(Some(100)), self.magika.ask(Some(100)))?;
        tokio::try_join!(self.iris.settled(), self.magika.settled())?;
        self.step(&mut table, began, "promoted").await
    }

    /// A step that is in force: its split is counted from here.
    async fn step(&self, table: &mut Table, began: Instant, name: &str) -> anyhow::Result<()> {
        self.traffic.mark("iris", name).await?;
        self.traffic.mark("magika", name).await?;
        self.show(table, began).await
    }

    /// Draws the table each second for a while.
    async fn show(&self, table: &mut Table, began: Instant) -> anyhow::Result<()> {
        let until = Instant::now() + SHOWN;
        let mut second = tokio::time::interval(Duration::from_secs(1));
        table.keep();
        while Instant::now() < until {
            second.tick().await;
            table.draw(began.elapsed().as_secs(), &self.seen().await?);
        }
        table.keep();
        Ok(())
    }

    async fn seen(&self) -> anyhow::Result<Vec<Seen>> {
        let (iris, magika, of_iris, of_magika) = tokio::try_join!(
            self.iris.get(),
            self.magika.get(),
            self.traffic.report("iris"),
            self.traffic.report("magika")
        )?;
        Ok(vec![Seen { service: iris, report: of_iris }, Seen { service: magika, report: of_magika }])
    }

    async fn stop(&self) -> anyhow::Result<Vec<Verdict>> {
        Ok(vec![
            self.traffic.stop("iris", &self.models).await?,
            self.traffic.stop("magika", &self.models).await?,
        ])
    }

    async fn broken(&self) -> anyhow::Result<()> {
        self.load(&self.iris, IRIS_RATE).await?;
        say("kubectl apply -f examples/broken.yaml");
        self.story.apply(&["broken"]).await?;
        let failed = self
            .iris
            .until("CanaryReady is False", |service| {
                let ready = condition(service, conditions::CANARY_READY);
                ready.is_some_and(|ready| ready.status == "False" && ready.reason == "ModelLoadFailed")
            })
            .await?;
        println!("{}", self.story.kubectl(&["get", "isvc", "iris"]).await?);
        if let Some(ready) = condition(&failed, conditions::CANARY_READY) {
            println!("CanaryReady={}, {}: {}", ready.status, ready.reason, ready.message);
        }
        let share = canary(&failed).map_or("nothing".to_owned(), |canary| format!("{} %", canary.in_force));
        self.traffic.phase("iris", "broken canary", 400).await?;
        let verdict = self.traffic.stop("iris", &self.models).await?;
        println!("The canary has {share} of the requests; stable serves on: {verdict}");
        ensure!(verdict.lost == 0, "{}", verdict.losses.join("\n"));
        say("kubectl apply -f examples/iris-canary.yaml        # back to the model that works");
        self.story.apply(&["iris-canary"]).await?;
        self.iris.settled().await?;
        self.story.kubectl(&["delete", "pod", "traffic", "--wait=false"]).await.map(drop)
    }
}

/// Sends every sample file to magika and prints what it says of it.
async fn types(magika: &Service) -> anyhow::Result<()> {
    let labels = Labels::read(&models().join("standard_v3_2"))?;
    println!("{:<18} {:<10} score", "file", "type");
    for sample in cases::samples(&models())? {
        let body = json!({"inputs": [cases::magika_input(&sample)]});
        let answer = magika.call("/v2/models/magika/infer", &body, None).await?;
        if answer.status != 200 {
            bail!("{}: {answer:?}", sample.name);
        }
        let answer: Value = serde_json::from_str(&answer.body)?;
        let scores = answer["outputs"][0]["data"].as_array().context("an answer without outputs")?;
        let scores: Vec<f64> = scores.iter().filter_map(Value::as_f64).collect();
        let (label, score) = labels.of(&scores)?;
        println!("{:<18} {label:<10} {score:.3}", sample.name);
        ensure!(
            label == sample.label_v3_2,
            "{}: Python's onnxruntime says {}",
            sample.name,
            sample.label_v3_2
        );
    }
    Ok(())
}

fn headline(text: &str) {
    println!("\n=== {text}");
}

fn say(command: &str) {
    println!("$ {command}");
}

fn look_around(took: Duration) {
    headline(&format!("Done in {:.0} s. Everything is still there", took.as_secs_f64()));
    println!(
        r#"Look around, in this folder:
  eval "$(e2e/cluster/env)"                             # kubectl and helm of this cluster
  kubectl config set-context --current --namespace {DEMO_NAMESPACE}
  kubectl get isvc
  kubectl describe isvc iris                            # conditions, traffic, events, and a curl that works
  kubectl get pods,inferenceroutes,controllerrevisions
  kubectl apply -f examples/iris.yaml                   # back to the first model, at once
  kubectl apply -f examples/iris-canary.yaml            # and the other one as a canary again
  kubectl patch isvc iris --type merge -p '{{"spec":{{"predictor":{{"canaryTrafficPercent":30}}}}}}'
Remove the cluster:
  make clean-cluster"#
    );
}
