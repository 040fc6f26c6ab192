//! `save_state` and `load_state`: a conversation goes to a file and comes from one, a piece at a time. While one is under way the
//! `generate` that runs pauses: both would want the same pages.

use std::path::Path;

use worker_orcd_protocol::{
    ErrorCode, ErrorObject, Id, LoadStateParams, MethodResult, SaveStateParams, StateResult,
};

use super::lifecycle::Serving;
use super::side::{SideStep, SideWork};
use crate::device::DeviceError;
use crate::pages::{PageTable, pages_for};
use crate::prefix::Found;
use crate::state::{Extent, Loading, Saving, StateError, StateStore};

/// How far a state is on its way.
pub(super) enum StateWork {
    Save(SaveStateParams),
    Saving(Box<Saving>),
    Load(LoadStateParams),
    Loading(Box<Loading>),
}

impl StateWork {
    /// One piece of a few milliseconds.
    pub(super) fn step(self, serving: &mut Serving, store: &dyn StateStore) -> SideStep {
        match self {
            StateWork::Save(params) => match begin_saving(&params, serving, store) {
                Ok(saving) => goes_on(StateWork::Saving(Box::new(saving))),
                Err(error) => SideStep::Failed(error),
            },
            StateWork::Saving(saving) => save_some(saving, serving),
            StateWork::Load(params) => match begin_loading(&params, serving, store) {
                Ok(loading) => goes_on(StateWork::Loading(Box::new(loading))),
                Err(error) => SideStep::Failed(error),
            },
            StateWork::Loading(loading) => load_some(loading, serving),
        }
    }
}

fn goes_on(work: StateWork) -> SideStep {
    SideStep::GoesOn(SideWork::State(work))
}

fn begin_saving(
    params: &SaveStateParams,
    serving: &mut Serving,
    store: &dyn StateStore,
) -> Result<Saving, ErrorObject> {
    let (found, param) = match (&params.request_id, &params.token_ids) {
        (Some(id), _) => (serving.prefixes.find_label(&label(id)), "request_id"),
        (None, tokens) => {
            let tokens = tokens.as_deref().unwrap_or_default();
            (serving.prefixes.find_tokens(tokens), "token_ids")
        }
    };
    let Some(Found { tokens, pages }) = found else {
        let message = "nothing of this conversation is kept: it was never computed, went on under another request, or made room for others";
        return Err(ErrorObject::new(ErrorCode::InvalidParams, message).with_param(param));
    };
    let sink = store.create(Path::new(&params.path));
    let sink = sink.map_err(|e| state_error(&StateError::File(e)))?;
    let pages = serving.pool.share(pages, pages_for(tokens.len()));
    Saving::begin(sink, &*serving.device, tokens, pages).map_err(|(pages, error)| {
        serving.pool.give_back(pages);
        state_error(&error)
    })
}

fn save_some(mut saving: Box<Saving>, serving: &mut Serving) -> SideStep {
    match saving.step(&mut *serving.device) {
        Ok(false) => goes_on(StateWork::Saving(saving)),
        Ok(true) => {
            let (pages, result) = saving.finish();
            serving.pool.give_back(pages);
            match result {
                Ok(extent) => SideStep::Done(MethodResult::SaveState(told(extent))),
                Err(error) => SideStep::Failed(state_error(&error)),
            }
        }
        Err(error) => {
            serving.pool.give_back(saving.abandon());
            failed(&error)
        }
    }
}

fn begin_loading(
    params: &LoadStateParams,
    serving: &mut Serving,
    store: &dyn StateStore,
) -> Result<Loading, ErrorObject> {
    let source = store.open(Path::new(&params.path));
    let source = source.map_err(|e| state_error(&StateError::File(e)))?;
    let mut loading = Loading::begin(source, &*serving.device, serving.model.context_length)
        .map_err(|e| state_error(&e))?;
    let mut pages = PageTable::default();
    let tokens = loading.tokens();
    let grown = serving.prefixes.grow(&mut serving.pool, &mut pages, tokens);
    if grown.is_err() {
        serving.pool.give_back(pages);
        let message = format!(
            "the state needs {} KV pages, and the pool of {} has not as many that nobody works on",
            pages_for(tokens),
            serving.pool.total()
        );
        return Err(ErrorObject::new(ErrorCode::VramOom, message));
    }
    loading.give_pages(pages);
    Ok(loading)
}

fn load_some(mut loading: Box<Loading>, serving: &mut Serving) -> SideStep {
    match loading.step(&mut *serving.device) {
        Ok(false) => goes_on(StateWork::Loading(loading)),
        Ok(true) => match loading.finish() {
            (pages, Ok((tokens, extent))) => {
                serving.prefixes.keep(&mut serving.pool, &tokens, pages, "");
                SideStep::Done(MethodResult::LoadState(told(extent)))
            }
            (pages, Err(error)) => {
                serving.pool.give_back(pages);
                SideStep::Failed(state_error(&error))
            }
        },
        Err(error) => {
            serving.pool.give_back(loading.abandon());
            failed(&error)
        }
    }
}

/// A lost device is lost for everybody.
fn failed(error: &StateError) -> SideStep {
    match error {
        StateError::Device(DeviceError::Lost(reason)) => SideStep::DeviceLost(reason.clone()),
        StateError::Device(DeviceError::Step(_)) | StateError::File(_) | StateError::Refused(_) => {
            SideStep::Failed(state_error(error))
        }
    }
}

/// How the prefix cache calls what a request has left.
pub(super) fn label(id: &Id) -> String {
    id.to_string()
}

fn told(extent: Extent) -> StateResult {
    StateResult {
        tokens: extent.tokens as u64,
        bytes: extent.bytes,
    }
}

fn state_error(error: &StateError) -> ErrorObject {
    match error {
        StateError::File(_) | StateError::Refused(_) => {
            ErrorObject::new(ErrorCode::InvalidParams, format!("path: {error}")).with_param("path")
        }
        StateError::Device(error) => ErrorObject::new(ErrorCode::Internal, error.to_string()),
    }
}
