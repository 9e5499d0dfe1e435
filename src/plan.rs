//! What a run would do, without doing it. Knows keys and results; starts nothing and builds nothing.

use std::rc::Rc;

use crate::error::Error;
use crate::keys::{Keys, Output};
use crate::pipeline::StageId;
use crate::session::Session;
use crate::why::{self, Cause, Found};

/// What a run would do with a stage.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Its result is there.
    UpToDate(Output),
    /// It runs: why.
    Run(Cause),
    /// Its key depends on stages that run first: the first of them in order.
    After(StageId),
    /// It cannot run: why.
    Stuck(String),
}

/// What a run would do with each of these stages (given with all their upstream, in order).
pub fn plan(session: &Session, stages: &[StageId]) -> Result<Vec<(StageId, Fate)>, Error> {
    plan_with(session, &Keys::current(session, stages)?, stages)
}

/// The same, by keys that are there already.
pub fn plan_with(session: &Session, keys: &Keys, stages: &[StageId]) -> Result<Vec<(StageId, Fate)>, Error> {
    let n = session.pipeline.stages.len();
    let (mut outputs, mut keyed) = (vec![None; n], vec![None; n]);
    let mut root: Vec<Option<StageId>> = vec![None; n];
    let mut fates = Vec::with_capacity(stages.len());
    for &id in stages {
        let waits = session.graph.inputs_of(id).iter().find_map(|up| root[up.index()]);
        let fate = match waits {
            Some(first) => Fate::After(first),
            None => match keys.key(id, &outputs, &keyed) {
                Err(error) => Fate::Stuck(error.text),
                Ok(key) => match why::look_for(session, session.stage(id), &key.key, None) {
                    Found::Whole(output) => {
                        outputs[id.index()] = Some(output);
                        keyed[id.index()] = Some(Rc::new(key));
                        Fate::UpToDate(output)
                    }
                    Found::Broken(why) => Fate::Run(Cause::Incomplete(why)),
                    Found::Nothing => Fate::Run(why::cause(session, &session.stage(id).name, &key)),
                },
            },
        };
        root[id.index()] = match &fate {
            Fate::UpToDate(_) => None,
            Fate::After(first) => Some(*first),
            Fate::Run(_) | Fate::Stuck(_) => Some(id),
        };
        fates.push((id, fate));
    }
    Ok(fates)
}
