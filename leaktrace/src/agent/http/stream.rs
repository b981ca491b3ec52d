//! Live summaries as server-sent events. A client that reads too slowly misses summaries; it never makes the agent
//! keep them.
use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::{export::api, model::service::View};

/// Between comments that keep the connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The summaries from the present one on; the permit is held as long as somebody listens.
pub fn summaries(
    mut views: watch::Receiver<Arc<View>>,
    top: usize,
    with_addresses: bool,
    permit: OwnedSemaphorePermit,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    views.mark_changed();
    let events = stream::unfold((views, permit, None), move |(mut views, permit, last)| async move {
        loop {
            // The agent ends.
            views.changed().await.ok()?;
            let view = Arc::clone(&views.borrow_and_update());
            if last == Some(view.number) {
                continue;
            }
            let event = Event::default().event("summary").id(view.number.to_string()).data(api::summary(
                &view.snapshot,
                top,
                with_addresses,
            ));
            return Some((Ok(event), (views, permit, Some(view.number))));
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
