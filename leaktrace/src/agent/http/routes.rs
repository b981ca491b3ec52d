//! What is answered to which request. Answers are made from the last view; only whole snapshots ask the loop.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    sync::{Mutex, Semaphore, oneshot},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    auth, host,
    problem::Problem,
    query::{self, Checked, CompareQuery, HeapQuery, HistoryQuery, LeaksQuery, Nothing, StreamQuery},
    stream,
};
use crate::{
    agent::{
        clock,
        service::{
            config::Listen,
            state::{Command, Shared},
        },
        tracer::host_name,
    },
    export::{api, diff as diff_json, metrics, pprof},
    model::{
        diff::diff,
        service::{View, Work, is_live, key},
        snapshot::{Confidence, Snapshot, TargetView},
    },
    render::report,
};

/// The description of the API.
const OPENAPI: &str = include_str!("openapi.json");
/// How long a whole snapshot answers further requests.
const FRESH: Duration = Duration::from_secs(1);

/// When a whole snapshot was made, and the snapshot.
type Made = (Instant, Arc<Snapshot>);

/// What handlers share.
#[derive(Clone, Debug)]
struct App {
    shared: Arc<Shared>,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    whole: Arc<Mutex<Option<Made>>>,
    host_name: Arc<str>,
}

/// All routes.
pub fn router(shared: Arc<Shared>) -> Router {
    let http = &shared.config().http;
    let permits =
        |count: u64| Arc::new(Semaphore::new(usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS)));
    let app = App {
        requests: permits(http.max_concurrent.0),
        streams: permits(http.max_streams.0),
        whole: Arc::default(),
        host_name: host_name().into(),
        shared: Arc::clone(&shared),
    };
    let max_request = usize::try_from(http.max_request.0).unwrap_or(usize::MAX);
    Router::new()
        .route("/api/v1/health", get(health))
        .route("/api/v1/stats", get(stats))
        .route("/api/v1/targets", get(targets))
        .route("/api/v1/targets/{pid}", get(target))
        .route("/api/v1/history", get(history))
        .route("/api/v1/leaks", get(leaks))
        .route("/api/v1/snapshots", get(snapshots).post(take_snapshot))
        .route("/api/v1/snapshots/compare", get(compare))
        .route("/api/v1/snapshots/{id}", get(snapshot))
        .route("/api/v1/report", get(report_text))
        .route("/api/v1/stream", get(live))
        .route("/api/v1/openapi.json", get(openapi))
        .route("/debug/pprof/heap", get(heap))
        .route("/metrics", get(metrics_page))
        .fallback(async || {
            Problem::new(404, "there is nothing here: /api/v1/openapi.json lists what there is")
        })
        .method_not_allowed_fallback(async || Problem::new(405, "this path does not take this method"))
        .layer(DefaultBodyLimit::max(max_request))
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

/// Bounds requests in number, size and time, counts them, and adds headers that every answer has.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let config = app.shared.config();
    app.shared.counts.add(Work::HttpRequests);
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let asked_for = match &config.http.listen {
        // No browser comes by a socket file.
        Listen::Unix(_) => Ok(()),
        Listen::Tcp(_) => {
            host::demand(request.uri(), request.headers(), &config.http.allowed_hosts, &app.host_name)
        }
    };
    let mut response = if let Err(problem) = asked_for {
        problem.into_response()
    } else if length.is_some_and(|length: u64| length > config.http.max_request.0) {
        Problem::new(413, format!("at most {} bytes", config.http.max_request.0)).into_response()
    } else {
        match app.requests.try_acquire() {
            Err(_) => Problem::new(503, "too many requests at once: try again").into_response(),
            Ok(_permit) => match timeout(config.http.timeout.0, next.run(request)).await {
                Ok(response) => response,
                Err(_) => {
                    Problem::new(503, "no answer within http.timeout: the agent is busy").into_response()
                }
            },
        }
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        app.shared.counts.add(Work::HttpErrors);
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn json(body: String) -> Response {
    typed("application/json", body)
}

fn typed(kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Whether the answer may say where processes have their memory: to those who have the agent's token.
fn may_see_addresses(app: &App, headers: &HeaderMap) -> bool {
    auth::demand(headers, app.shared.config().http.token.as_deref()).is_ok()
}

/// Makes an answer where it may take long.
async fn aside(
    work: impl FnOnce() -> Result<Response, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    spawn_blocking(work).await.unwrap_or_else(|_| Err(Problem::new(500, "the answer could not be made")))
}

async fn health(State(app): State<App>, _: Checked<Nothing>) -> Response {
    json(api::health(&app.shared.view(), clock::wall_ns()))
}

async fn stats(State(app): State<App>, _: Checked<Nothing>) -> Response {
    json(api::stats(&app.shared.view()))
}

async fn targets(State(app): State<App>, _: Checked<Nothing>) -> Response {
    json(api::targets(&app.shared.view()))
}

/// The live target of this pid, or else the one that ended last.
fn find(view: &View, pid: u32) -> Result<&TargetView, Problem> {
    view.all().find(|target| target.pid == pid).ok_or_else(|| {
        Problem::new(404, format!("process {pid} is not traced: /api/v1/targets lists those that are"))
    })
}

async fn target(
    State(app): State<App>,
    Path(pid): Path<String>,
    headers: HeaderMap,
    _: Checked<Nothing>,
) -> Result<Response, Problem> {
    let pid = pid.parse().map_err(|_| Problem::new(400, "a target is named by its process id"))?;
    let view = app.shared.view();
    Ok(json(api::target(&view, find(&view, pid)?, may_see_addresses(&app, &headers))))
}

async fn history(State(app): State<App>, Checked(query): Checked<HistoryQuery>) -> Result<Response, Problem> {
    let from = query::time("from", query.from.as_deref(), i64::MIN)?;
    let to = query::time("to", query.to.as_deref(), i64::MAX)?;
    let view = app.shared.view();
    let key = key(find(&view, query.target)?);
    let (points, peak) = app.shared.with_series(|series| (series.points(key, from, to), series.peak(key)));
    Ok(json(api::history(key, &points, peak)))
}

async fn leaks(
    State(app): State<App>,
    headers: HeaderMap,
    Checked(query): Checked<LeaksQuery>,
) -> Result<Response, Problem> {
    let limit = query::bounded("limit", query.limit, 100, 1, 1000)?;
    let at_least = query.confidence.map_or(Confidence::Low, Confidence::from);
    let with_addresses = may_see_addresses(&app, &headers);
    Ok(json(api::leaks(&app.shared.view(), at_least, query.target, limit, with_addresses)))
}

async fn snapshots(State(app): State<App>, _: Checked<Nothing>) -> Result<Response, Problem> {
    let Some(store) = app.shared.store() else { return Ok(json(api::snapshots(&[]))) };
    aside(move || match store.list() {
        Ok(files) => Ok(json(api::snapshots(&files))),
        Err(error) => Err(Problem::new(500, format!("the folder of snapshots cannot be read: {error}"))),
    })
    .await
}

async fn take_snapshot(
    State(app): State<App>,
    headers: HeaderMap,
    _: Checked<Nothing>,
    body: Bytes,
) -> Result<Response, Problem> {
    auth::demand(&headers, app.shared.config().http.token.as_deref())?;
    if !body.is_empty() {
        return Err(Problem::new(400, "this request takes no body"));
    }
    if app.shared.store().is_none() {
        return Err(Problem::new(
            409,
            "the agent keeps no files: set snapshots.directory in its configuration",
        ));
    }
    let (reply, answer) = oneshot::channel();
    ask(&app, Command::Save(reply))?;
    match answer.await {
        Ok(Ok(file)) => {
            let place = format!("/api/v1/snapshots/{}", file.id);
            Ok((StatusCode::CREATED, [(header::LOCATION, place)], json(api::snapshot_file(&file)))
                .into_response())
        }
        Ok(Err(error)) => Err(Problem::new(503, error)),
        Err(_) => Err(ending()),
    }
}

fn ending() -> Problem {
    Problem::new(503, "the agent is ending")
}

fn ask(app: &App, command: Command) -> Result<(), Problem> {
    app.shared
        .commands
        .try_send(command)
        .map_err(|_| Problem::new(503, "too many snapshots are asked for at once: try again"))
}

async fn snapshot(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    _: Checked<Nothing>,
) -> Result<Response, Problem> {
    let with_addresses = may_see_addresses(&app, &headers);
    aside(move || {
        let mut bytes = stored(&app, &id)?;
        if !with_addresses {
            let mut snapshot = pprof::read(&bytes)
                .map_err(|error| Problem::new(500, format!("the snapshot cannot be read: {error:#}")))?;
            snapshot.relocate();
            bytes = pprof::write(&snapshot);
        }
        let name = HeaderValue::from_str(&format!("attachment; filename=\"leaktrace-{id}.pb.gz\""))
            .map_err(|_| Problem::new(400, "no such id"))?;
        Ok(([(header::CONTENT_DISPOSITION, name)], typed("application/gzip", bytes)).into_response())
    })
    .await
}

fn stored(app: &App, id: &str) -> Result<Vec<u8>, Problem> {
    let missing =
        || Problem::new(404, "there is no such snapshot: /api/v1/snapshots lists those that there are");
    let store = app.shared.store().ok_or_else(missing)?;
    match store.read(id) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(missing()),
        Err(error) => Err(Problem::new(500, format!("the snapshot cannot be read: {error}"))),
    }
}

/// A snapshot with all call stacks; one that was just made answers again.
async fn whole(app: &App) -> Result<Arc<Snapshot>, Problem> {
    let mut kept = app.whole.lock().await;
    if let Some((made, snapshot)) = kept.as_ref()
        && made.elapsed() < FRESH
    {
        return Ok(Arc::clone(snapshot));
    }
    let (reply, answer) = oneshot::channel();
    ask(app, Command::Whole(reply))?;
    let snapshot = answer.await.map_err(|_| ending())?;
    *kept = Some((Instant::now(), Arc::clone(&snapshot)));
    Ok(snapshot)
}

async fn compare(State(app): State<App>, Checked(query): Checked<CompareQuery>) -> Result<Response, Problem> {
    let top = query::bounded("top", query.top, 100, 1, 1000)?;
    let now = if query.base == "now" || query.other == "now" { Some(whole(&app).await?) } else { None };
    aside(move || {
        let read = |id: &str| match (&now, id) {
            (Some(now), "now") => Ok(Arc::clone(now)),
            _ => pprof::read(&stored(&app, id)?)
                .map(Arc::new)
                .map_err(|error| Problem::new(500, format!("the snapshot cannot be read: {error:#}"))),
        };
        let (base, other) = (read(&query.base)?, read(&query.other)?);
        Ok(json(diff_json::diff(&diff(&base, &other), top)))
    })
    .await
}

async fn heap(
    State(app): State<App>,
    headers: HeaderMap,
    Checked(query): Checked<HeapQuery>,
) -> Result<Response, Problem> {
    let with_addresses = may_see_addresses(&app, &headers);
    let snapshot = whole(&app).await?;
    aside(move || {
        // What ended processes held is held no more.
        let mut live = Snapshot::clone(&snapshot);
        live.targets.retain(|target| is_live(target) && query.pid.is_none_or(|pid| target.pid == pid));
        if let Some(pid) = query.pid.filter(|_| live.targets.is_empty()) {
            return Err(Problem::new(404, format!("process {pid} is not traced")));
        }
        if !with_addresses {
            live.relocate();
        }
        let name = [(header::CONTENT_DISPOSITION, "attachment; filename=\"heap.pb.gz\"")];
        Ok((name, typed("application/gzip", pprof::write(&live))).into_response())
    })
    .await
}

async fn report_text(State(app): State<App>, _: Checked<Nothing>) -> Response {
    typed("text/plain; charset=utf-8", report::report(&app.shared.view()))
}

async fn live(
    State(app): State<App>,
    headers: HeaderMap,
    Checked(query): Checked<StreamQuery>,
) -> Result<Response, Problem> {
    let top = query::bounded("top", query.top, 10, 0, 100)?;
    let permit = Arc::clone(&app.streams)
        .try_acquire_owned()
        .map_err(|_| Problem::new(503, "too many streams are open: http.max_streams"))?;
    let events = stream::summaries(app.shared.view.clone(), top, may_see_addresses(&app, &headers), permit);
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(([unbuffered], events).into_response())
}

async fn openapi() -> Response {
    json(OPENAPI.replace("@VERSION@", env!("CARGO_PKG_VERSION")))
}

async fn metrics_page(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::accepted(accept);
    let sites = usize::try_from(app.shared.config().http.metrics_sites.0).unwrap_or(usize::MAX);
    let page = metrics::page(app.shared.view(), sites, format)
        .map_err(|error| Problem::new(500, format!("the metrics cannot be written: {error}")))?;
    Ok(typed(format.content_type(), page))
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
