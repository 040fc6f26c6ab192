//! The load: piece by piece, told at every quarter, and what becomes of it.

use std::time::Instant;

use worker_orcd_protocol::{
    ErrorCode, ErrorDetails, ErrorObject, Exit, Notification, Phase, Progress,
};

use super::lifecycle::{Serving, Stage, device_error, rounded};
use super::{ClockMode, Worker};
use crate::device::{DeviceError, LoadProgress};
use crate::limits;
use crate::load::{Load, LoadError, LoadStep, Loaded};
use crate::log::Level;
use crate::pages::PagePool;
use crate::prefix::PrefixCache;

/// A load under way.
pub(super) struct Loading {
    load: Box<dyn Load>,
    since: Instant,
    /// How much there is to load, as told last; `None` before anybody knows.
    total: Option<u64>,
    /// Quarters of the load that were told: 0 before the first.
    quarters_told: u64,
    told_at: Instant,
}

impl Stage {
    pub(super) fn loading(load: Box<dyn Load>, now: Instant) -> Self {
        Stage::Loading(Loading {
            load,
            since: now,
            total: None,
            quarters_told: 0,
            told_at: now,
        })
    }
}

impl Worker {
    /// One piece of the load.
    pub(super) fn load_piece(&mut self, now: Instant, until: Instant) {
        let Stage::Loading(loading) = &mut self.stage else {
            return;
        };
        match loading.load.step(now, until) {
            Ok(LoadStep::Progress(progress)) => self.tell_progress(now, progress),
            Ok(LoadStep::Ready(loaded)) => self.loaded(now, *loaded),
            Err(error) => self.load_failed(now, &error),
        }
    }

    /// Tells every quarter of the load, and what lies between two of them as often as is useful.
    fn tell_progress(&mut self, now: Instant, progress: LoadProgress) {
        let Stage::Loading(loading) = &mut self.stage else {
            return;
        };
        let LoadProgress { processed, total } = progress;
        if total == 0 {
            // The file is not open yet, so nobody knows how much there is to do.
            return;
        }
        loading.total = Some(total);
        let processed = processed.min(total);
        let reached = (u128::from(processed) * 4 / u128::from(total)) as u64 + 1;
        let mut told: Vec<u64> = (loading.quarters_told..reached)
            .map(|q| quarter(total, q))
            .collect();
        loading.quarters_told = loading.quarters_told.max(reached);
        let is_due =
            now.saturating_duration_since(loading.told_at) >= limits::LOAD_PROGRESS_INTERVAL;
        if told.is_empty() && is_due && self.config.clock.mode == ClockMode::Real {
            told.push(processed);
        }
        if told.is_empty() {
            return;
        }
        loading.told_at = now;
        let time_ms = self.config.clock.ms(loading.since, now);
        for processed in told {
            let progress = Progress {
                phase: Phase::Load,
                processed,
                total,
                time_ms,
                request_id: None,
            };
            self.notify(Notification::Progress(progress));
            let fields = [("processed", processed.into()), ("total", total.into())];
            self.record(now, Level::Debug, "model_load_progress", &fields);
        }
    }

    fn loaded(&mut self, now: Instant, loaded: Loaded) {
        let Stage::Loading(loading) = &self.stage else {
            return;
        };
        let (since, told_total) = (loading.since, loading.total);
        let parts = loading.load.parts().to_vec();
        let Loaded {
            device,
            tokenizer,
            template,
            model,
        } = loaded;
        let weights_bytes = device.memory().weights_bytes;
        let total = told_total.unwrap_or(weights_bytes);
        self.tell_progress(
            now,
            LoadProgress {
                processed: total,
                total,
            },
        );
        let pool = PagePool::new(device.capacity().pages);
        self.log.set_common("model", model.name.as_str());
        self.log.set_common("device", model.device.as_str());
        let ms = |from, to| rounded(self.config.clock.ms(from, to));
        let mut fields = vec![
            ("model", model.name.as_str().into()),
            ("device", model.device.as_str().into()),
            ("weights_bytes", weights_bytes.into()),
            ("kv_bytes", device.memory().kv_bytes.into()),
            ("load_ms", ms(since, now)),
        ];
        let ends = parts.iter().skip(1).map(|(_, begun)| *begun).chain([now]);
        fields.extend(
            parts
                .iter()
                .zip(ends)
                .map(|((name, begun), end)| (*name, ms(*begun, end))),
        );
        self.record(now, Level::Info, "model_load_complete", &fields);
        self.stage = Stage::Serving(Box::new(Serving {
            device,
            tokenizer,
            vocabulary: None,
            template,
            model,
            pool,
            prefixes: PrefixCache::default(),
            resident_at: now,
            is_untidy: true,
        }));
        let ready = self.ready();
        self.notify(Notification::Ready(Box::new(ready)));
        self.record(now, Level::Info, "ready", &[]);
        self.log.flush();
    }

    fn load_failed(&mut self, now: Instant, error: &LoadError) {
        let (exit, object) = load_error(error, &self.config.model_name, &self.config.device_name);
        self.fatal(now, exit, object);
    }
}

/// Bytes at a quarter of the load.
fn quarter(total: u64, quarters: u64) -> u64 {
    (u128::from(total) * u128::from(quarters) / 4) as u64
}

/// Exit code and error of a load that failed.
pub fn load_error(error: &LoadError, model: &str, device: &str) -> (Exit, ErrorObject) {
    let names = ErrorDetails {
        model: Some(model.to_owned()),
        device: Some(device.to_owned()),
        ..Default::default()
    };
    let failed = |details| {
        ErrorObject::new(ErrorCode::ModelLoadFailed, error.to_string()).with_details(details)
    };
    match error {
        LoadError::NoInput(_) => (Exit::NoInput, failed(names)),
        LoadError::BadModel(_) => (Exit::BadModel, failed(names)),
        LoadError::NoDevice(_) => (Exit::NoDevice, failed(names)),
        LoadError::NoMemory {
            message,
            required_bytes,
            available_bytes,
        } => {
            let details = ErrorDetails {
                required_bytes: Some(*required_bytes),
                available_bytes: Some(*available_bytes),
                ..names
            };
            let error = ErrorObject::new(ErrorCode::InsufficientVram, message.as_str())
                .with_details(details);
            (Exit::NoMemory, error)
        }
        LoadError::Device(DeviceError::Step(reason) | DeviceError::Lost(reason)) => {
            (Exit::DeviceLost, device_error(reason, device))
        }
    }
}
