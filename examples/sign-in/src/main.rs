//! A sign-in with two factors. Read this file, then session.rs, then pages/ in the order in which a user meets them.

mod answer;
mod layout;
mod limit;
mod pages;
mod session;

use std::{env, error::Error, io, net::IpAddr, net::SocketAddr, sync::Arc, time::Duration};

use answer::Failure;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use deadpool_postgres::{Manager, Pool, Runtime};
use pages::{code, desk, device, devices, enroll, password, recovery_codes, reset, unlock};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinError};
use tokio_postgres::{Config, NoTls, Row, types::ToSql};

/// What every page can reach.
#[derive(Clone)]
pub struct App {
    /// The role of the public pages. What it changes of a user's devices needs a code of that user.
    web: Pool,
    /// The role of the desk. Without it there are no pages of the desk: run them as a process of their own.
    desk: Option<Pool>,
    /// How browsers name this server, such as `https://example.com`.
    origin: Arc<str>,
    limit: Arc<limit::PerMinute>,
    /// The header in which a proxy says whose request it is.
    address_header: Option<HeaderName>,
    hashing: Arc<Semaphore>,
    /// The hash of a password that nobody has.
    nobody: Arc<str>,
}

impl App {
    /// A query of the public pages: a transaction of its own, committed when its rows are here.
    pub async fn rows(&self, query: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure> {
        Ok(self.web.get().await?.query(query, values).await?)
    }

    pub async fn one(&self, query: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, Failure> {
        Ok(self.web.get().await?.query_one(query, values).await?)
    }

    /// 404 if there is no such row: an address can name anything.
    pub async fn must_have(&self, query: &str, values: &[&(dyn ToSql + Sync)]) -> Result<(), Failure> {
        self.rows(query, values).await?.first().map(|_| ()).ok_or(Failure::NotFound)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    if env::args().nth(1).as_deref() == Some("hash") {
        println!("{}", password::hash(io::read_to_string(io::stdin())?.trim_end_matches('\n')));
        return Ok(());
    }
    let listener = TcpListener::bind(env::var("LISTEN").unwrap_or("127.0.0.1:0".into())).await?;
    let address = listener.local_addr()?;
    // Without TLS cookies and codes are in the clear: on this machine only.
    let origin = match env::var("ORIGIN") {
        Ok(origin) if origin.strip_prefix("https://").is_some_and(|host| !host.contains('/')) => origin,
        Err(_) if address.ip().is_loopback() => format!("http://{address}"),
        _ => return Err("set ORIGIN to what browsers call this server, such as https://example.com".into()),
    };
    let address_header: Option<HeaderName> = env::var("ADDRESS_HEADER").ok().map(|it| it.parse()).transpose()?;
    if origin.starts_with("https:") && address_header.is_none() {
        return Err("set ADDRESS_HEADER to the header with the address, such as X-Forwarded-For".into());
    }
    let app = App {
        web: pool(&env::var("WEB_DATABASE")?)?,
        desk: env::var("DESK_DATABASE").ok().map(|settings| pool(&settings)).transpose()?,
        origin: origin.as_str().into(),
        limit: Arc::new(limit::PerMinute::new(env::var("POSTS_PER_MINUTE").unwrap_or("30".into()).parse()?)),
        address_header,
        hashing: Arc::new(Semaphore::new(2)),
        nobody: password::hash(&session::random_token()).into(),
    };
    println!("listening on {origin}");
    serve(listener, router(app).into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}

/// Settings such as `host=/run/postgresql user=web dbname=app`.
fn pool(settings: &str) -> Result<Pool, Box<dyn Error>> {
    let mut config: Config = settings.parse()?;
    config.options("-c statement_timeout=10s");
    let pool = Pool::builder(Manager::new(config, NoTls)).max_size(8).runtime(Runtime::Tokio1);
    Ok(pool.wait_timeout(Some(Duration::from_secs(10))).build()?)
}

fn router(app: App) -> Router {
    let mut pages = Router::new()
        .route("/sign-in", get(password::ask).post(password::check))
        .route("/code", get(code::ask).post(code::check))
        .route("/recover", get(code::ask).post(code::check))
        .route("/enroll", get(enroll::ask).post(enroll::begin))
        .route("/enroll/confirm", post(enroll::confirm))
        .route("/", get(devices::show))
        .route("/device", get(device::show))
        .route("/device/rename", post(device::rename))
        .route("/device/remove", post(device::remove))
        .route("/recovery-codes", get(recovery_codes::ask).post(recovery_codes::create))
        .route("/sign-out", post(session::sign_out));
    if app.desk.is_some() {
        pages = pages
            .route("/desk", get(desk::list))
            .route("/desk/{member}", get(desk::show))
            .route("/desk/{member}/unlock", get(unlock::ask).post(unlock::unlock))
            .route("/desk/{member}/reset", get(reset::ask).post(reset::reset));
    }
    pages
        .layer(DefaultBodyLimit::max(16 * 1024))
        .layer(from_fn_with_state(app.clone(), guard))
        .route("/style.css", get(([(header::CONTENT_TYPE, "text/css")], include_str!("style.css"))))
        .with_state(app)
}

/// What holds for every page.
async fn guard(State(app): State<App>, peer: ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    let posted = request.method() == Method::POST;
    let mut response = if posted && request.headers().get(header::ORIGIN).is_none_or(|it| it != &*app.origin) {
        // Every browser says which site a form was sent from. SameSite keeps our cookie out of such a request, too.
        let text = "Open the page again and send the form from there.";
        layout::message(StatusCode::FORBIDDEN, "Not sent from this site", text)
    } else if posted && !app.limit.allows(address(&app, peer.0, &request)) {
        let text = "Too many forms were sent from your address. Try again in a minute.";
        ([(header::RETRY_AFTER, "60")], layout::message(StatusCode::TOO_MANY_REQUESTS, "Please wait", text))
            .into_response()
    } else {
        // A browser whose user clicks twice hangs up on the first request, and the server would drop it half way:
        // the code used up, and nobody signed in. In a task of its own it runs to its end.
        let broken = |error: JoinError| Failure::Broken(error.to_string()).into_response();
        with_layout(tokio::spawn(next.run(request)).await.unwrap_or_else(broken))
    };
    let policy = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, "same-origin"), // with no-referrer, browsers hide the origin of a form from us, too
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// axum has a line of text, and no page, for a path, a method or a form that it does not take.
fn with_layout(given: Response) -> Response {
    let has_page = given.headers().get(header::CONTENT_TYPE).is_some_and(|it| it == "text/html; charset=utf-8");
    let (title, text) = match given.status() {
        status if has_page || status.is_redirection() => return given,
        StatusCode::NOT_FOUND => ("No such page", "There is no such page."),
        StatusCode::PAYLOAD_TOO_LARGE => ("That was not done", "What was typed is too long."),
        _ => ("That was not done", "Open the page again and send the form from there."),
    };
    let allowed = given.headers().get(header::ALLOW).map(|it| (header::ALLOW, it.clone()));
    (AppendHeaders(allowed), layout::message(given.status(), title, text)).into_response()
}

/// Behind a proxy all requests come from the proxy. The last address in its header is what the proxy saw: a client can
/// send those before it.
fn address(app: &App, peer: SocketAddr, request: &Request) -> IpAddr {
    let values = app.address_header.as_ref().map(|name| request.headers().get_all(name));
    let last = values.and_then(|it| it.iter().next_back()).and_then(|it| it.to_str().ok()?.rsplit(',').next());
    last.and_then(|it| it.trim().parse().ok()).unwrap_or(peer.ip())
}
