use std::path::PathBuf;

use clap::ValueEnum;

use super::args::{PartLimits, TrainArgs, truth};
use super::train::Run;
use super::yaml::Given;
use crate::data::{Dataset, Pair};
use crate::losses::{
    Divergence, LossOptions, Normaliser, PairBatch, PairObjective, Psi, SlicTarget, preference_loss,
};
use crate::train::methods::Paired;
use crate::train::{Method, SyncRefModel};
use crate::{Device, Error, Result};

/// Rows of `prompt, chosen, rejected`, or of `chosen, rejected` whose prompt is their common start;
/// with `weight` and `target_prob` where there are any.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    parts: PartLimits,
    /// sigmoid (DPO), hinge, ipo (per token, as TRL), ipo_sum (as the paper), robust, exo_pair,
    /// apo_zero, apo_down, nca_pair, bco_pair, sppo_hard, sigmoid_norm, psi_po, slic_hf, kto_paired, simpo,
    /// orpo, cpo, discopop, aot, aot_unpaired; or a weighted list: sigmoid:1,sft:0.2
    #[arg(long, default_value = "sigmoid", value_name = "LOSS")]
    loss_type: String,
    /// Weights of a list of losses, as in TRL: 1.0,0.2 [default: 1 each]
    #[arg(long, value_name = "X,...", allow_hyphen_values = true)]
    loss_weights: Option<String>,
    /// Strength of the pull to the reference; tau of ipo and psi_po
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    beta: f64,
    /// Assumed share of flipped labels, for sigmoid, robust and exo_pair [default: 0; exo_pair: 1e-3]
    #[arg(long, value_name = "X")]
    label_smoothing: Option<f64>,
    /// SimPO's target margin
    #[arg(long, default_value_t = 0.5, value_name = "X")]
    simpo_gamma: f64,
    /// SimPO's target margin in units of beta, in the place of --simpo-gamma [default: none]
    #[arg(long, conflicts_with = "simpo_gamma", value_name = "X")]
    gamma_beta_ratio: Option<f64>,
    /// Weight of CPO's likelihood term
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    cpo_alpha: f64,
    /// Temperature of discopop's modulation
    #[arg(long, default_value_t = 0.05, value_name = "X")]
    discopop_tau: f64,
    /// Psi of psi_po: identity, logit, or a file of rising lines `p psi`
    #[arg(long, default_value = "identity", value_name = "PSI")]
    psi: String,
    /// SLiC-HF's margin
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    slic_delta: f64,
    /// Weight of SLiC-HF's regulariser, the target's negative log-likelihood
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    slic_lambda: f64,
    /// SLiC-HF's target: the chosen answer, or one sampled from the initial model, once, before training
    #[arg(long, default_value = "chosen", value_name = "TARGET")]
    slic_target: SlicTargetName,
    /// New tokens of a sampled target at most
    #[arg(long, default_value_t = 128, value_name = "N")]
    slic_max_new_tokens: usize,
    /// Scale inside kto_paired's chosen side [default: beta]
    #[arg(long, value_name = "X")]
    kto_lambda_d: Option<f64>,
    /// Scale inside kto_paired's rejected side [default: beta]
    #[arg(long, value_name = "X")]
    kto_lambda_u: Option<f64>,
    /// Take kto_paired's KL estimates as constants
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    kto_detach_kl: bool,
    /// The divergence that holds the policy to the reference
    #[arg(long, default_value = "reverse_kl", value_name = "NAME")]
    f_divergence_type: DivergenceName,
    /// Coefficient of the alpha divergence
    #[arg(long, default_value_t = 0.5, value_name = "X")]
    f_alpha_divergence_coef: f64,
    /// Take the reference's log-probs as 0; no reference is loaded
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    reference_free: bool,
    /// What the tokens of the longer answer past the end of the shorter one count, from 0 to 1 (LD-DPO)
    /// [default: 1]
    #[arg(long, value_name = "X")]
    ld_alpha: Option<f64>,
    /// Weigh pairs by how likely their answers are under the policy (WPO); on the CPU alone
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    use_weighting: bool,
    /// Score the reference over the whole dataset once, before the first step
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    precompute_ref_log_probs: bool,
    /// Let the reference follow the policy (TR-DPO)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    sync_ref_model: bool,
    /// The policy's share in an updated reference, with --sync-ref-model
    #[arg(long, default_value_t = 0.6, value_name = "X")]
    ref_model_mixup_alpha: f64,
    /// Steps from one update of the reference to the next, with --sync-ref-model
    #[arg(long, default_value_t = 512, value_name = "N")]
    ref_model_sync_steps: usize,
    /// Both answers of a pair stand on one copy of their prompt: exact, and cheaper
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    share_prompts: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum DivergenceName {
    ReverseKl,
    ForwardKl,
    JsDivergence,
    AlphaDivergence,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SlicTargetName {
    Chosen,
    Sampled,
}

/// Runs `collimate dpo`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let objective = args.objective()?;
    let mut run = Run::new(&args.train, given)?;
    if run.device != Device::Cpu && objective.use_weighting {
        return Err(Error::Unsupported("--use-weighting on a GPU: use --device cpu".into()));
    }
    let bco = objective.terms.iter().any(|(_, term)| term.name() == "bco_pair");
    if run.device != Device::Cpu && bco {
        return Err(Error::Unsupported("--loss-type bco_pair on a GPU: use --device cpu".into()));
    }
    run.parts = args.parts.clone();
    run.config.precompute_ref_log_probs = args.precompute_ref_log_probs;
    let (steps, alpha) = (args.ref_model_sync_steps, args.ref_model_mixup_alpha);
    run.config.sync_ref_model = args.sync_ref_model.then_some(SyncRefModel { steps, alpha });
    run.config.validate()?;
    let share_prompts = args.share_prompts;
    let (train, held_out) = run.datasets::<Pair>(false)?;
    check_soft_labels(&objective, &train)?;
    held_out.as_ref().map_or(Ok(()), |pairs| check_soft_labels(&objective, pairs))?;
    let tokens = args.slic_max_new_tokens;
    let sampled = objective.needs_target_logp();
    let mut targets = |pairs: &Dataset<Pair>, stream| {
        sampled.then(|| run.sample_answers(pairs, tokens, stream)).transpose()
    };
    let (own, other) = (targets(&train, 0)?, held_out.as_ref().map(|pairs| targets(pairs, 1)));
    let paired =
        |pairs, targets| Paired { objective: objective.clone(), share_prompts, pairs, targets };
    let method = paired(train, own);
    let held_out = match held_out.zip(other) {
        Some((pairs, targets)) => Some(paired(pairs, targets?)),
        None => None,
    };
    run.train(&method, held_out.as_ref().map(|m| m as &dyn Method))
}

/// A soft label that the objective cannot hear is an error now, not when its batch comes.
fn check_soft_labels(objective: &PairObjective, pairs: &Dataset<Pair>) -> Result<()> {
    let prob = |i: usize| pairs.text(i).and_then(|text| text.target_prob).filter(|&p| p != 1.0);
    let Some((i, p)) = (0..pairs.len()).find_map(|i| Some((i, prob(i)?))) else { return Ok(()) };
    let batch = PairBatch {
        policy_chosen_logps: &[0.0],
        policy_rejected_logps: &[0.0],
        reference_chosen_logps: Some(&[0.0]),
        reference_rejected_logps: Some(&[0.0]),
        chosen_tokens: &[1],
        rejected_tokens: &[1],
        target_probs: Some(&[p]),
        target_logps: Some(&[0.0]),
        ..PairBatch::default()
    };
    preference_loss(objective, &batch, Normaliser::single(1))
        .map(drop)
        .map_err(|e| pairs.error(i, "target_prob", e.to_string()))
}

impl Args {
    fn objective(&self) -> Result<PairObjective> {
        let options = LossOptions {
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            simpo_gamma: self.gamma_beta_ratio.map_or(self.simpo_gamma, |x| x * self.beta),
            cpo_alpha: self.cpo_alpha,
            discopop_tau: self.discopop_tau,
            psi: psi(&self.psi)?,
            slic_delta: self.slic_delta,
            slic_lambda: self.slic_lambda,
            slic_target: match self.slic_target {
                SlicTargetName::Chosen => SlicTarget::Chosen,
                SlicTargetName::Sampled => SlicTarget::Sampled,
            },
            kto_lambda_d: self.kto_lambda_d,
            kto_lambda_u: self.kto_lambda_u,
            kto_detach_kl: self.kto_detach_kl,
            ld_alpha: self.ld_alpha,
            use_weighting: self.use_weighting,
            reference_free: self.reference_free,
            divergence: match self.f_divergence_type {
                DivergenceName::ReverseKl => Divergence::ReverseKl,
                DivergenceName::ForwardKl => Divergence::ForwardKl,
                DivergenceName::JsDivergence => Divergence::JensenShannon,
                DivergenceName::AlphaDivergence => Divergence::Alpha(self.f_alpha_divergence_coef),
            },
        };
        PairObjective::parse(&self.weighted()?, &options)
    }

    /// `--loss-type` with the weights of `--loss-weights`.
    fn weighted(&self) -> Result<String> {
        let Some(weights) = &self.loss_weights else { return Ok(self.loss_type.clone()) };
        let weights: Vec<&str> = weights.split(',').map(str::trim).collect();
        let names: Vec<&str> = self.loss_type.split(',').collect();
        if names.len() != weights.len() || self.loss_type.contains(':') {
            return Err(Error::setting(
                "loss_weights",
                format!("one for each of the {} losses, all in one place", names.len()),
                weights.len(),
            ));
        }
        let list: Vec<String> =
            names.iter().zip(weights).map(|(name, weight)| format!("{name}:{weight}")).collect();
        Ok(list.join(","))
    }
}

/// A Psi by name, or a table from a file: a line is `p psi`.
fn psi(name: &str) -> Result<Psi> {
    match name {
        "identity" => return Ok(Psi::Identity),
        "logit" => return Ok(Psi::Logit),
        _ => {}
    }
    let path = PathBuf::from(name);
    if !path.exists() {
        return Err(Error::setting("psi", "identity, logit or a file of lines `p psi`", name));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let mut points = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let numbers: Vec<f64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [p, value] = numbers[..] else {
            let message = format!("line {}: expected two numbers `p psi`, got `{line}`", at + 1);
            return Err(Error::file(&path, message));
        };
        points.push((p, value));
    }
    Ok(Psi::Table(points))
}
