//! Posts alerts to an address: a bounded queue, a thread of its own, retries with growing pauses. What is in a
//! message is `export`'s work.
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{config::Alerts, state::Counts};
use crate::model::service::Work;

/// Attempts for one alert: with the pauses between them about two minutes.
const ATTEMPTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<String>,
    url: Option<String>,
    timeout: Duration,
    most: usize,
    closed: bool,
}

/// The sending end.
#[derive(Debug)]
pub struct Webhook {
    shared: Arc<(Mutex<Queue>, Condvar)>,
    counts: Arc<Counts>,
}

impl Webhook {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(settings: &Alerts, counts: Arc<Counts>) -> std::io::Result<Webhook> {
        let webhook = Webhook { shared: Arc::default(), counts: Arc::clone(&counts) };
        webhook.set(settings);
        let shared = Arc::clone(&webhook.shared);
        thread::Builder::new().name("webhook".to_owned()).spawn(move || deliver_all(&shared, &counts))?;
        Ok(webhook)
    }

    /// Takes new settings; what waits is sent to the new address.
    pub fn set(&self, settings: &Alerts) {
        let mut queue = lock(&self.shared.0);
        queue.url = settings.webhook.clone();
        queue.timeout = settings.webhook_timeout.0;
        queue.most = usize::try_from(settings.webhook_queue.0).unwrap_or(usize::MAX);
        if queue.url.is_none() {
            queue.waiting.clear();
        }
        self.shared.1.notify_all();
    }

    /// Queues a message; where too many wait, the oldest is dropped and counted.
    pub fn send(&self, message: String) {
        let mut queue = lock(&self.shared.0);
        if queue.url.is_none() {
            return;
        }
        queue.waiting.push_back(message);
        while queue.waiting.len() > queue.most {
            queue.waiting.pop_front();
            self.counts.add(Work::WebhookDropped);
        }
        self.shared.1.notify_all();
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        lock(&self.shared.0).closed = true;
        self.shared.1.notify_all();
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn deliver_all(shared: &(Mutex<Queue>, Condvar), counts: &Counts) {
    let mut attempts = 0;
    let mut held: Option<String> = None;
    loop {
        let mut queue = lock(&shared.0);
        let (url, timeout) = loop {
            if queue.closed {
                return;
            }
            if held.is_none() {
                held = queue.waiting.pop_front();
            }
            if held.is_some() {
                match &queue.url {
                    Some(url) => break (url.clone(), queue.timeout),
                    None => held = None,
                }
            }
            queue = shared.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        let Some(message) = held.clone() else { continue };
        match post(&url, timeout, &message) {
            Ok(()) => {
                counts.add(Work::WebhookDelivered);
                (held, attempts) = (None, 0);
            }
            Err(error) => {
                counts.add(Work::WebhookAttemptsFailed);
                attempts += 1;
                tracing::warn!(attempt = attempts, %error, "an alert was not delivered to the webhook");
                if attempts >= ATTEMPTS {
                    counts.add(Work::WebhookDropped);
                    (held, attempts) = (None, 0);
                    continue;
                }
                // A new address or the end does not have to wait for the pause.
                let queue = lock(&shared.0);
                if !queue.closed {
                    drop(shared.1.wait_timeout(queue, pause(attempts)));
                }
            }
        }
    }
}

fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

/// Only an answer that says so is a delivery: one that leads elsewhere (3xx) would lose the alert.
fn post(url: &str, timeout: Duration, message: &str) -> Result<(), String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .build();
    let answer = ureq::Agent::new_with_config(config)
        .post(url)
        .header("content-type", "application/json")
        .header("user-agent", concat!("leaktrace/", env!("CARGO_PKG_VERSION")))
        .send(message)
        .map_err(|error| error.to_string())?;
    match answer.status().as_u16() {
        200..=299 => Ok(()),
        code @ 300..=399 => Err(format!("it answers {code}: set alerts.webhook to where it leads")),
        code => Err(format!("it answers {code}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;

    /// Answers with these codes in turn and passes bodies on.
    fn server(codes: &'static [u16]) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/alerts", listener.local_addr().unwrap());
        let (sender, bodies) = mpsc::channel();
        thread::spawn(move || {
            for code in codes {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = text.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                write!(stream, "HTTP/1.1 {code} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .unwrap();
                sender.send(String::from_utf8(body).unwrap()).unwrap();
            }
        });
        (url, bodies)
    }

    #[test]
    fn an_alert_that_is_refused_is_sent_again_until_it_is_taken() {
        let (url, bodies) = server(&[500, 307, 200, 200]);
        let counts = Arc::new(Counts::default());
        let settings = Alerts { webhook: Some(url), ..Alerts::default() };
        let webhook = Webhook::start(&settings, Arc::clone(&counts)).unwrap();
        webhook.send("one".to_owned());
        webhook.send("two".to_owned());
        let patience = Duration::from_secs(30);
        let heard: Vec<String> = (0..4).map(|_| bodies.recv_timeout(patience).unwrap()).collect();
        assert_eq!(heard, ["one", "one", "one", "two"]);
        assert_eq!(counts.of(Work::WebhookAttemptsFailed), 2);
    }

    #[test]
    fn too_many_that_wait_are_dropped_and_counted_and_pauses_grow() {
        let counts = Arc::new(Counts::default());
        let webhook = Webhook { shared: Arc::default(), counts: Arc::clone(&counts) };
        webhook.set(&Alerts {
            webhook: Some("http://127.0.0.1:1".to_owned()),
            webhook_queue: crate::agent::service::values::Count(2),
            ..Alerts::default()
        });
        (0..5).for_each(|number| webhook.send(number.to_string()));
        assert_eq!(lock(&webhook.shared.0).waiting, ["3", "4"]);
        assert_eq!(counts.of(Work::WebhookDropped), 3);
        assert_eq!((pause(1), pause(2), pause(99)), (FIRST_PAUSE, FIRST_PAUSE * 2, LONGEST_PAUSE));
    }
}
