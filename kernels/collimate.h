/*
 * The kernels of collimate, for any language that can call C. Needs <stdint.h> alone.
 *
 * Common to all functions, unless one says otherwise:
 *  - Every pointer to data is device memory, its shape in brackets; "=" outputs are overwritten, "+=" outputs are
 *    added to. Structs of settings and of pointers are host memory, read before the call returns.
 *  - Matrices are row-major with a row stride in elements. Rows need no alignment beyond their element's.
 *  - dtype names the type of the `void *` matrices; statistics, coefficients and sums are float32; token ids, lengths
 *    and offsets int32; sizes and strides int64. Arithmetic is float32, long sums are float64.
 *  - Nothing is allocated and nothing synchronises. Work is queued on `stream` (a cudaStream_t; NULL is the default).
 *  - The returned status is 0, a cudaError_t (> 0), or one of collimate_status (< 0; then nothing was queued).
 *  - Results do not depend on the rest of the batch, on addresses or on timing: they are the same bits every time.
 *  - `workspace` is device memory of at least the bytes that the _workspace function of the same name returns, aligned
 *    to 16; its contents need not be set and mean nothing afterwards. It may be NULL where 0 bytes are asked for.
 *  - `error` is the device error word: int32 [3] = {code, row, value}, set to zeros by the caller. The first failure
 *    wins. It may be NULL. Read it at the next synchronisation.
 */
#ifndef COLLIMATE_H
#define COLLIMATE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum collimate_dtype { COLLIMATE_F32 = 0, COLLIMATE_BF16 = 1, COLLIMATE_F16 = 2 };

enum collimate_status {
    COLLIMATE_OK = 0,
    COLLIMATE_STATUS_DTYPE = -1,     /* no such dtype tag */
    COLLIMATE_STATUS_ARGUMENT = -2,  /* a size, stride or setting outside its range */
    COLLIMATE_STATUS_WORKSPACE = -3  /* the workspace is too small */
};

/* error[0] */
enum collimate_error {
    COLLIMATE_ERROR_NONE = 0,
    COLLIMATE_ERROR_TOKEN = 1,   /* a target is neither COLLIMATE_IGNORE nor in [0, vocab); value: the target */
    COLLIMATE_ERROR_LOGITS = 2,  /* a row's logsumexp is not finite (all -inf, or a NaN or +inf); value: its bits */
    COLLIMATE_ERROR_INDEX = 3,   /* an index of rows is outside the matrix; value: the index */
    COLLIMATE_ERROR_NORM = 4     /* the norm of the gradients is not finite; row: the step, value: its bits in float32 */
};

/* The target of a row that is not scored. */
#define COLLIMATE_IGNORE (-100)

/* ------------------------------------------------------------------------------------------------------------------
 * token_logprobs: log softmax(z)[target] row by row, z = cap(logits) / temperature.
 *
 * Accuracy: |logp - exact| <= 2e-6 max(1, |lse|, |logp|). 16-bit gradients lie within 1 ulp of the rounded exact value
 * plus 1e-7 |g|, float32 gradients within 1e-6 |g|. Backward adds 1.2e-7 |lse| |g|, the rounding of the lse it is
 * given, a soft cap 4e-7 soft_cap / temperature |g|, the rounding of tanh.
 * A row with target COLLIMATE_IGNORE reads no logits; its statistics are 0 and its gradient is 0.
 * A row with a target outside [0, vocab) does the same, but its logp and lse are NaN, and it sets the error word.
 * A row that is all -inf has logp = lse = -inf, other statistics and gradient 0, and sets the error word.
 */

typedef struct {
    float temperature; /* > 0; 1 for none */
    float soft_cap;    /* cap(x) = soft_cap tanh(x / soft_cap); 0 for none */
} collimate_logits_map;

/* Statistics of each row beyond its log-probability; any pointer may be NULL. */
typedef struct {
    float *entropy;    /* [rows] =  -sum p ln p */
    float *hit;        /* [rows] =  1 where no logit is larger than the target's, else 0 */
    float *mean_logit; /* [rows] =  mean over the vocabulary of the logits as given */
    float *log_sum_p2; /* [rows] =  ln sum p^2 */
} collimate_token_statistics;

/* Bytes for collimate_token_logprobs_forward and _fused. 0 for many rows. */
int64_t collimate_token_logprobs_workspace(int64_t rows, int64_t vocab);

int32_t collimate_token_logprobs_forward(
    float *logps,                                 /* [rows] = */
    float *lse,                                   /* [rows] =  logsumexp(z) */
    const collimate_token_statistics *statistics, /* NULL: none */
    const void *logits,                           /* [rows, vocab], stride row_stride */
    const int32_t *targets,                       /* [rows] */
    const collimate_logits_map *map,              /* NULL: z = logits */
    int64_t rows, int64_t vocab, int64_t row_stride, int32_t dtype,
    void *workspace, int64_t workspace_bytes, int32_t *error, void *stream);

/* dlogits = dlogps (onehot(target) - softmax(z)) dz/dlogits. In place where dlogits == logits with one stride. */
int32_t collimate_token_logprobs_backward(
    void *dlogits,           /* [rows, vocab] =, stride dlogits_stride; columns beyond vocab are left alone */
    const float *dlogps,     /* [rows] */
    const float *lse,        /* [rows], of forward */
    const void *logits,      /* [rows, vocab], stride logits_stride */
    const int32_t *targets,  /* [rows] */
    const collimate_logits_map *map,
    int64_t rows, int64_t vocab, int64_t logits_stride, int64_t dlogits_stride, int32_t dtype, void *stream);

/* Forward and backward at once, for dlogps = 1: the logits are replaced by (onehot(target) - softmax(z)) dz/dlogits. */
int32_t collimate_token_logprobs_fused(
    void *logits_to_gradient,                     /* [rows, vocab] in: logits, out: = gradient, stride row_stride */
    float *logps,                                 /* [rows] = */
    float *lse,                                   /* [rows] = */
    const collimate_token_statistics *statistics, /* NULL: none */
    const int32_t *targets,                       /* [rows] */
    const collimate_logits_map *map,
    int64_t rows, int64_t vocab, int64_t row_stride, int32_t dtype,
    void *workspace, int64_t workspace_bytes, int32_t *error, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * sequence_sum: sums of token values over sequences, and the way back.
 * Sequence s is rows cu_scored[s] .. cu_scored[s + 1]; offsets do not decrease. An empty sequence sums to 0.
 */

int32_t collimate_sequence_sum_forward(
    float *sums,               /* [sequences] =  sum of weight * logp */
    int32_t *counts,           /* [sequences] =  rows that are scored; NULL: not wanted */
    const float *logps,        /* [rows] */
    const float *weights,      /* [rows], NULL: 1 */
    const int32_t *targets,    /* [rows]; rows with COLLIMATE_IGNORE are left out; NULL: all are scored */
    const int32_t *cu_scored,  /* [sequences + 1] */
    int64_t sequences, void *stream);

int32_t collimate_sequence_sum_backward(
    float *dlogps,             /* [rows] =  weight * dsums[s]; 0 where left out; rows of no sequence are left alone */
    const float *dsums,        /* [sequences] */
    const float *weights,      /* [rows], NULL: 1 */
    const int32_t *targets,    /* [rows], NULL: all are scored */
    const int32_t *cu_scored,  /* [sequences + 1] */
    int64_t sequences, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * preference_loss: losses on pairs, their gradients, rewards and metrics in one launch.
 *
 * lw, ll: summed log-probabilities of chosen and rejected under the policy, rw, rl under the reference, n_w, n_l:
 * lengths, at least 1 each in a division; a = lw - rw, b = ll - rl, d = a - b, h = beta d; sp softplus, sg sigmoid.
 */

enum collimate_preference_kind {
    COLLIMATE_PREFERENCE_SIGMOID = 0,           /* DPO: p sp(-h) + (1 - p) sp(h), p = label, else 1 - label_smoothing */
    COLLIMATE_PREFERENCE_ROBUST = 1,            /* ((1 - e) sp(-h) - e sp(h)) / (1 - 2e), e = label_smoothing < 1/2 */
    COLLIMATE_PREFERENCE_HINGE = 2,             /* max(0, 1 - h) */
    COLLIMATE_PREFERENCE_IPO_SUM = 3,           /* (d - 1 / (2 beta))^2 */
    COLLIMATE_PREFERENCE_IPO_MEAN = 4,          /* (a / n_w - b / n_l - 1 / (2 beta))^2 */
    COLLIMATE_PREFERENCE_PSI_PO = 5,            /* (d - psi_target)^2; psi_target: (Psi(p) - Psi(1 - p)) / (2 tau) */
    COLLIMATE_PREFERENCE_EXO = 6,               /* reverse KL of (sg(h), sg(-h)) to (1 - e, e), 0 < e < 1 */
    COLLIMATE_PREFERENCE_APO_ZERO = 7,          /* 1 - sg(beta a) + sg(beta b) */
    COLLIMATE_PREFERENCE_APO_DOWN = 8,          /* sg(beta a) + 1 - sg(h) */
    COLLIMATE_PREFERENCE_NCA = 9,               /* sp(-beta a) + (sp(beta a) + sp(beta b)) / 2 */
    COLLIMATE_PREFERENCE_SPPO = 10,             /* (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2 */
    COLLIMATE_PREFERENCE_LENGTH_NORMALISED = 11, /* DPO with h = beta (a / n_w - b / n_l) */
    COLLIMATE_PREFERENCE_SIMPO = 12,            /* sp(gamma - beta (lw / n_w - ll / n_l)) */
    COLLIMATE_PREFERENCE_ORPO = 13,             /* -lw / n_w + beta sp(-log odds ratio) */
    COLLIMATE_PREFERENCE_CPO = 14,              /* sp(-beta (lw - ll)) - alpha lw / n_w */
    COLLIMATE_PREFERENCE_SLIC_HF = 15,          /* max(0, delta - lw + ll) - lambda target_logps */
    COLLIMATE_PREFERENCE_SFT = 16,              /* -lw / sft_tokens, outside the normaliser, without pair weights */
    COLLIMATE_PREFERENCE_DISCOPOP = 17          /* sg(-h / tau) sp(-h) + sg(h / tau) exp(-h), 0 < tau <= 1 */
};

/* What stands for the log-ratios a and b in the losses. The rewards stay log-ratios, SFT and losses without a reference
 * read none. */
enum collimate_divergence {
    COLLIMATE_DIVERGENCE_REVERSE_KL = 0,     /* a */
    COLLIMATE_DIVERGENCE_FORWARD_KL = 1,     /* 1 - exp(-a) */
    COLLIMATE_DIVERGENCE_JENSEN_SHANNON = 2, /* ln 2 - sp(-a) */
    COLLIMATE_DIVERGENCE_ALPHA = 3           /* (1 - exp(-alpha a)) / alpha, 0 < alpha < 1 */
};

/* One loss of a mixture. Fields that its formula does not name are not read. */
typedef struct {
    int32_t kind;  /* collimate_preference_kind */
    float weight;  /* in the mixture */
    float beta;
    float label_smoothing;
    float gamma;   /* SimPO's margin */
    float alpha;   /* CPO's weight of the likelihood */
    float delta;   /* SLiC-HF's margin */
    float lambda;  /* SLiC-HF's weight of the target's likelihood */
    float tau;     /* DiscoPOP's temperature */
} collimate_preference_term;

#define COLLIMATE_PREFERENCE_TERMS 8

typedef struct {
    collimate_preference_term terms[COLLIMATE_PREFERENCE_TERMS];
    int32_t term_count;       /* 1 .. COLLIMATE_PREFERENCE_TERMS */
    int32_t reward_per_token; /* not 0: rewards are divided by lengths */
    float reward_scale;       /* rewards are reward_scale (log-ratio); usually beta */
    double normaliser;        /* pairs of the whole step, > 0 */
    double sft_tokens;        /* chosen tokens that SFT's mean is over, > 0 where a term is SFT */
} collimate_preference_config;

/* Pointers of one call. Pair i reads and writes those with a stride at [i * stride]. */
typedef struct {
    const float *policy_chosen_logps;      /* [pairs, stride] */
    const float *policy_rejected_logps;    /* [pairs, stride] */
    const float *reference_chosen_logps;   /* [pairs, reference_stride], NULL: 0 */
    const float *reference_rejected_logps; /* [pairs, reference_stride], NULL: 0 */
    const int32_t *chosen_lengths;         /* [pairs, stride], NULL where no term or reward divides by lengths */
    const int32_t *rejected_lengths;       /* [pairs, stride], likewise */
    const float *policy_target_logps;      /* [pairs] of SLiC-HF, NULL: the chosen ones */
    const float *labels;                   /* [pairs], NULL: see the kinds */
    const float *psi_targets;              /* [pairs] of PSI_PO */
    const float *weights;                  /* [pairs] of the pairs' losses, NULL: 1 */
    float *dchosen;                        /* [pairs, stride] =  d loss / d lw */
    float *drejected;                      /* [pairs, stride] =  d loss / d ll */
    float *dtarget;                        /* [pairs] =  d loss / d target_logps; NULL iff policy_target_logps is */
    float *losses;                         /* [pairs] =  the mixture without SFT, weight and normaliser; may be NULL */
    float *chosen_rewards;                 /* [pairs] =  may be NULL */
    float *rejected_rewards;               /* [pairs] =  may be NULL */
    float *accuracies;                     /* [pairs] =  1 where the chosen reward is the larger; may be NULL */
    double *metrics;                       /* [COLLIMATE_PREFERENCE_METRICS] +=  may be NULL */
    int64_t pairs, stride, reference_stride;
    int32_t divergence;                    /* collimate_divergence */
    float divergence_alpha;
    int32_t adds;                          /* not 0, for a further loss of a mixture: losses and gradients are +=,
                                            * rewards and accuracies are left alone, of the metrics the loss is added */
} collimate_preference_batch;

/* Sums over the pairs of the call, except the first. */
enum collimate_preference_metric {
    COLLIMATE_PREFERENCE_LOSS = 0, /* the call's share of the step's loss: sum of weight * loss / normaliser, and SFT */
    COLLIMATE_PREFERENCE_CHOSEN_REWARD = 1,
    COLLIMATE_PREFERENCE_REJECTED_REWARD = 2,
    COLLIMATE_PREFERENCE_ACCURACY = 3,
    COLLIMATE_PREFERENCE_CHOSEN_LOGP = 4,
    COLLIMATE_PREFERENCE_REJECTED_LOGP = 5,
    COLLIMATE_PREFERENCE_PAIRS = 6,
    COLLIMATE_PREFERENCE_METRICS = 7
};

int64_t collimate_preference_loss_workspace(int64_t pairs);

int32_t collimate_preference_loss(
    const collimate_preference_batch *batch, const collimate_preference_config *config,
    void *workspace, int64_t workspace_bytes, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * kto_loss: losses on single examples, desirable or not, and the article's form on pairs.
 */

typedef struct {
    float beta;
    float desirable_weight;   /* lambda_D */
    float undesirable_weight; /* lambda_U */
    double normaliser;        /* examples of the whole step, > 0 */
} collimate_kto_config;

/* Sums over the examples of the call, except the first two. */
enum collimate_kto_metric {
    COLLIMATE_KTO_LOSS = 0, /* the call's share of the step's loss */
    COLLIMATE_KTO_KL = 1,   /* z0; added once per call */
    COLLIMATE_KTO_DESIRABLE_REWARD = 2,
    COLLIMATE_KTO_UNDESIRABLE_REWARD = 3,
    COLLIMATE_KTO_DESIRABLE_LOGP = 4,
    COLLIMATE_KTO_UNDESIRABLE_LOGP = 5,
    COLLIMATE_KTO_DESIRABLE = 6,
    COLLIMATE_KTO_UNDESIRABLE = 7,
    COLLIMATE_KTO_METRICS = 8
};

/* The sum and the count that z0 is the clamped mean of; ranks may add theirs before kto_loss reads it. */
int32_t collimate_kto_kl_sum(
    double *kl,                    /* [2] +=  {sum of policy - reference, count} */
    const float *policy_logps,     /* [count], of mismatched pairs */
    const float *reference_logps,  /* [count] */
    int64_t count, void *stream);

/* z0 = max(0, kl[0] / kl[1]), detached; 0 without a count.
 * desirable: lambda_D (1 - sg(beta (r - z0))), undesirable: lambda_U (1 - sg(beta (z0 - r))), r = policy - reference. */
int32_t collimate_kto_loss(
    float *dlogps,                 /* [examples] = */
    float *losses,                 /* [examples] =  without weight and normaliser; may be NULL */
    float *rewards,                /* [examples] =  beta r; may be NULL */
    double *metrics,               /* [COLLIMATE_KTO_METRICS] +=  may be NULL */
    const float *policy_logps,     /* [examples] */
    const float *reference_logps,  /* [examples], NULL: 0 */
    const int32_t *desirable,      /* [examples] 0 or not */
    const float *weights,          /* [examples], NULL: 1 */
    const double *kl,              /* [2], of collimate_kto_kl_sum; NULL: z0 = 0 */
    const collimate_kto_config *config, int64_t examples, void *stream);

typedef struct {
    float desirable_beta;   /* lambda_d: scales inside the sigmoid */
    float undesirable_beta; /* lambda_u */
    float reward_scale;
    float weight;           /* in the mixture */
    int32_t detach_kl;      /* 0: the gradient flows through the KL terms too; then the call must hold the whole batch */
    double normaliser;      /* pairs of the whole step, > 0; the loss is the mean over twice as many values */
} collimate_kto_paired_config;

/* chosen: sg(-lambda_d (a - KL_l)), rejected: sg(-lambda_u (KL_w - b)); KL_w = max(0, mean a), KL_l = max(0, mean b).
 * Of `batch` it uses the log-probabilities, outputs and metrics as preference_loss does; `losses` is the mean of the
 * pair's two values; weights multiply both. Labels, lengths and targets are not read. a and b are as the divergence
 * bends them. */
int32_t collimate_kto_paired_loss(
    const collimate_preference_batch *batch,
    const double *kl,  /* [3] {sum a, sum b, pairs} of the whole batch; NULL: from this call's pairs */
    const collimate_kto_paired_config *config, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * aot_loss: alignment by optimal transport. The call must hold the whole batch.
 */

typedef struct {
    float beta;
    float reward_scale;
    float weight;      /* in the mixture */
    int32_t unpaired;  /* not 0: x are the chosen log-ratios and y the rejected ones, as the divergence bends them */
    double normaliser; /* pairs of the whole step, > 0 */
} collimate_aot_config;

int64_t collimate_aot_loss_workspace(int64_t pairs);

/* sp(-beta (x_k - y_k)), x the pairs' margins lw - ll and y the references' rw - rl, each sorted on its own. A loss and
 * its weight are those of the pair that x_k is of. Of `batch` it uses what kto_paired_loss does. */
int32_t collimate_aot_loss(
    const collimate_preference_batch *batch, const collimate_aot_config *config,
    void *workspace, int64_t workspace_bytes, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * gather_rows: rows of a matrix by index, and the way back. An index outside [0, source_rows) gathers zeros, adds
 * nothing and sets the error word.
 */

int32_t collimate_gather_rows_forward(
    void *out,              /* [rows, columns] =, stride out_stride */
    const void *source,     /* [source_rows, columns], stride source_stride */
    const int32_t *indices, /* [rows] */
    int64_t rows, int64_t columns, int64_t source_rows, int64_t out_stride, int64_t source_stride, int32_t dtype,
    int32_t *error, void *stream);

/* Adds the gradients of rows gathered from one place in the order of `order`, in float32, rounded once. dsource may be
 * float32 where dout is not: the gradient of an embedding.
 * Destination u collects dout[order[i]] for i in offsets[u] .. offsets[u + 1]: sort the rows by index, stably. */
int32_t collimate_gather_rows_backward(
    void *dsource,               /* [source_rows, columns] +=, stride source_stride */
    const void *dout,            /* [rows, columns], stride out_stride */
    const int32_t *destinations, /* [groups], each at most once */
    const int32_t *offsets,      /* [groups + 1] */
    const int32_t *order,        /* [rows] */
    int64_t groups, int64_t columns, int64_t source_rows, int64_t out_stride, int64_t source_stride,
    int32_t dsource_dtype, int32_t dtype, int32_t *error, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * elementwise: sums, scales, fills and conversions. 16-bit results are rounded once from float32.
 */

/* y += x. A stride of 0 adds the one row of x to every row: a bias. */
int32_t collimate_add(
    void *y,       /* [rows, columns] +=, stride y_stride */
    const void *x, /* [rows, columns], stride x_stride; or [1, columns], stride 0 */
    int64_t rows, int64_t columns, int64_t y_stride, int64_t x_stride, int32_t dtype, void *stream);

/* x = factor factors[row] x */
int32_t collimate_scale(
    void *x,              /* [rows, columns] =, stride `stride` */
    const float *factors, /* [rows], NULL: 1 */
    float factor, int64_t rows, int64_t columns, int64_t stride, int32_t dtype, void *stream);

int32_t collimate_fill(
    void *x, /* [rows, columns] =  value; stride `stride` */
    float value, int64_t rows, int64_t columns, int64_t stride, int32_t dtype, void *stream);

/* Between any two dtypes; exact to a wider one, else to nearest, ties to even. */
int32_t collimate_cast(
    void *out,     /* [rows, columns] =, stride out_stride, out_dtype */
    const void *x, /* [rows, columns], stride x_stride, x_dtype */
    int64_t rows, int64_t columns, int64_t out_stride, int64_t x_stride, int32_t out_dtype, int32_t x_dtype,
    void *stream);

int64_t collimate_bias_backward_workspace(int64_t rows, int64_t columns);

/* The gradient of a bias: sums over 64 rows in float32, of those in float64. */
int32_t collimate_bias_backward(
    float *dbias,   /* [columns] +=  sum of the rows of dy */
    const void *dy, /* [rows, columns], stride dy_stride */
    int64_t rows, int64_t columns, int64_t dy_stride, int32_t dtype,
    void *workspace, int64_t workspace_bytes, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * dropout (Srivastava et al., JMLR 15, 2014): values stay with probability 1 - threshold / 2^16 and are divided by it.
 */

/* y = x keep / (1 - threshold / 2^16); keep is 0 where the value's 16 random bits are below the threshold. Those of
 * column c of row r are half c mod 8 of the words of Philox's block r ceil(columns / 8) + floor(c / 8), low half first. Of
 * gradients the same call gives the gradients. */
int32_t collimate_dropout(
    void *y,       /* [rows, columns] =, or += where add is not 0; stride y_stride */
    const void *x, /* [rows, columns], stride x_stride; may be y where add is 0 */
    uint64_t seed, uint64_t random_stream,
    int32_t threshold, /* 0 .. 65535 */
    int64_t rows, int64_t columns, int64_t y_stride, int64_t x_stride, int32_t add, int32_t dtype, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * rmsnorm: out = x rstd weight, rstd = 1 / sqrt(mean(x^2) + eps), over every `width` columns of the `groups` of a row.
 * rows * groups is below 2^31, width at most COLLIMATE_RMSNORM_WIDTH.
 */

#define COLLIMATE_RMSNORM_WIDTH 32768

/* With a residual: residual += x, and the rounded sum is what is normalised. */
int32_t collimate_rmsnorm_forward(
    void *out,          /* [rows, groups * width] =, stride out_stride */
    float *rstd,        /* [rows, groups] =, stride rstd_stride */
    void *residual,     /* [rows, groups * width] +=, stride residual_stride; NULL: none */
    const void *x,      /* [rows, groups * width], stride x_stride */
    const void *weight, /* [width] */
    int64_t rows, int64_t groups, int64_t width, int64_t out_stride, int64_t rstd_stride, int64_t residual_stride,
    int64_t x_stride, float eps, int32_t dtype, void *stream);

int64_t collimate_rmsnorm_backward_workspace(int64_t rows, int64_t groups, int64_t width, int32_t dtype);

int32_t collimate_rmsnorm_backward(
    void *dx,           /* [rows, groups * width] =, or += where add_to_dx is not 0; stride dx_stride */
    float *dweight,     /* [width] += */
    const void *dout,   /* [rows, groups * width], stride dout_stride */
    const void *x,      /* [rows, groups * width], stride x_stride: what was normalised */
    const void *weight, /* [width] */
    const float *rstd,  /* [rows, groups], stride rstd_stride, of forward */
    int64_t rows, int64_t groups, int64_t width, int64_t dx_stride, int64_t dout_stride, int64_t x_stride,
    int64_t rstd_stride, int32_t add_to_dx, int32_t dtype, void *workspace, int64_t workspace_bytes, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * rope: rotary position embedding, half-split: column i of a head is paired with column i + half.
 */

int32_t collimate_rope_table(
    float *table,             /* [rows, 2 half] =  the cosines of a position's angles, then their sines */
    const int32_t *positions, /* [rows] */
    const double *inv_freq,   /* [half] radians per position; angles are float64 */
    int64_t rows, int64_t half, void *stream);

/* Turns (a, b) to (a cos - b sin, b cos + a sin); backwards by minus the angle: the gradient. */
int32_t collimate_rope(
    void *x,            /* [rows, heads * 2 half] =, stride `stride` */
    const float *table, /* [rows, 2 half] */
    int64_t rows, int64_t heads, int64_t half, int64_t stride, int32_t backwards, int32_t dtype, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * swiglu: silu(gate) up, silu(x) = x / (1 + exp(-x)). The gate's columns lie before those of the up-projection.
 */

int32_t collimate_swiglu_forward(
    void *out,           /* [rows, columns] =, stride out_stride */
    const void *gate_up, /* [rows, 2 columns], stride gate_up_stride */
    int64_t rows, int64_t columns, int64_t out_stride, int64_t gate_up_stride, int32_t dtype, void *stream);

int32_t collimate_swiglu_backward(
    void *dgate_up,      /* [rows, 2 columns] =, stride dgate_up_stride */
    const void *dout,    /* [rows, columns], stride dout_stride */
    const void *gate_up, /* [rows, 2 columns], stride gate_up_stride */
    int64_t rows, int64_t columns, int64_t dgate_up_stride, int64_t dout_stride, int64_t gate_up_stride,
    int32_t dtype, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * global_norm: the Euclidean norm of all values of a matrix, in float64; not finite where a value is not.
 */

int64_t collimate_global_norm_workspace(int64_t rows, int64_t columns, int64_t stride);

int32_t collimate_global_norm(
    double *norm,  /* [1] = */
    const void *x, /* [rows, columns], stride `stride` */
    int64_t rows, int64_t columns, int64_t stride, int32_t dtype, void *workspace, int64_t workspace_bytes, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * adamw: a step with decoupled weight decay over ranges of arenas, in the order of operations of torch.optim.AdamW.
 * Gradients are scaled by min(1, max_grad_norm / (norm + 1e-6)). With a norm that is not finite nothing is written, and
 * the error word is set.
 */

typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    double max_grad_norm; /* 0: gradients are not scaled */
    int64_t step;         /* from 1 */
} collimate_adamw_config;

/* Device memory, unlike other structs. */
typedef struct {
    int64_t start, end; /* values start .. end of every arena */
    int64_t decay;      /* 0 or not: whether the weights decay */
} collimate_adamw_range;

int32_t collimate_adamw(
    void *weights,                        /* the master weights, rounded =; NULL: not wanted */
    float *master,                        /* += the step */
    float *m,                             /* first moment, updated */
    float *v,                             /* second moment, updated */
    const float *grads,
    const double *norm,                   /* [1], of the gradients */
    const collimate_adamw_range *ranges,  /* [range_count], ascending and apart, all of them in begin .. end */
    const collimate_adamw_config *config, /* host memory */
    int64_t range_count, int64_t begin, int64_t end, int32_t dtype, int32_t *error, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * attention: out = softmax(scale q k^T) v, head by head; causal over segments of rows, with shared prefixes and grouped
 * queries: query head h reads key head h / (heads / kv_heads). What sees what is a list of blocks on the device, of any
 * order: longest first is fastest.
 *
 * Accuracy: float32 statistics and sums. 16-bit calls with head dims 64, 96 and 128 whose rows all start at 16 bytes go
 * to the matrix units, which round probabilities to 16 bits; other calls are float32 arithmetic throughout. A query's
 * result depends on the keys that it sees and their order alone: not on whether its prefix is shared, nor on the batch.
 */

#define COLLIMATE_ATTENTION_BLOCK 128 /* most rows of a block */

/* Queries `row` .. `row + count` of one segment, `first` of whose queries come before. Query i sees the key rows
 * prefix_start .. prefix_start + prefix_len, then kv_start .. kv_start + first + i, the last included. */
typedef struct {
    int32_t row, count, first;
    int32_t kv_start, prefix_start, prefix_len;
} collimate_attention_queries;

/* Keys `row` .. `row + count`, which the queries of readers[first_reader .. first_reader + readers] see. */
typedef struct {
    int32_t row, count;
    int32_t first_reader, readers;
} collimate_attention_keys;

/* Queries `row` .. `row + count`. Query i sees key j of the block where i >= j, or where `causal` is 0. */
typedef struct {
    int32_t row, count;
    int32_t causal;
} collimate_attention_reader;

typedef struct {
    const void *q; /* [rows, heads head_dim], stride q_stride */
    const void *k; /* [kv_rows, kv_heads head_dim], stride kv_stride */
    const void *v; /* [kv_rows, kv_heads head_dim], stride kv_stride */
    int64_t q_stride, kv_stride;
    int64_t heads, kv_heads, head_dim;
    float scale;
    int32_t dtype;
} collimate_attention_inputs;

int32_t collimate_attention_forward(
    void *out,                                   /* [rows, heads head_dim] =, stride out_stride */
    float *lse,                                  /* [rows, heads] =  natural, stride lse_stride; NULL: not wanted */
    const collimate_attention_inputs *inputs,
    const collimate_attention_queries *queries,  /* [query_blocks], each row of out in one block */
    int64_t query_blocks, int64_t out_stride, int64_t lse_stride, void *stream);

#define COLLIMATE_ATTENTION_DECODE_HEAD_DIM 4096

/* Forward for blocks of one query each, most_keys the most that one sees: the keys of a query are spread over the device,
 * cut at places that hang on its own keys alone. Head dims up to COLLIMATE_ATTENTION_DECODE_HEAD_DIM. */
int64_t collimate_attention_decode_workspace(int64_t queries, int64_t heads, int64_t head_dim, int64_t most_keys);

int32_t collimate_attention_decode(
    void *out,                                   /* [rows, heads head_dim] =, stride out_stride */
    const collimate_attention_inputs *inputs,
    const collimate_attention_queries *queries,  /* [query_count] */
    int64_t query_count, int64_t most_keys, int64_t out_stride,
    void *workspace, int64_t workspace_bytes, void *stream);

typedef struct {
    void *dq;         /* [rows, heads head_dim] = */
    void *dk;         /* [kv_rows, kv_heads head_dim] = */
    void *dv;         /* [kv_rows, kv_heads head_dim] = */
    const void *dout; /* [rows, heads head_dim], stride dout_stride */
    const void *out;  /* [rows, heads head_dim], stride out_stride, of forward */
    const float *lse; /* [rows, heads], stride lse_stride, of forward */
    int64_t dq_stride, dkv_stride, dout_stride, out_stride, lse_stride;
} collimate_attention_gradients;

int64_t collimate_attention_backward_workspace(int64_t rows, int64_t heads);

/* dq by blocks of queries, dk and dv by blocks of keys: their sums go over the query heads of a group, then over the
 * readers in their order. */
int32_t collimate_attention_backward(
    const collimate_attention_gradients *gradients, const collimate_attention_inputs *inputs,
    const collimate_attention_queries *queries, /* [query_blocks], as in forward */
    const collimate_attention_keys *keys,       /* [key_blocks], each row of dk in one block */
    const collimate_attention_reader *readers,
    int64_t rows, int64_t query_blocks, int64_t key_blocks,
    void *workspace, int64_t workspace_bytes, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * kv_cache: the new keys and values of all sequences to their rows of a layer's caches. A place outside
 * [0, cache_rows) is skipped and sets the error word.
 */

int32_t collimate_kv_cache_write(
    void *keys,            /* [cache_rows, columns] =, the rows of `places` alone, stride cache_stride */
    void *values,          /* the same of the values */
    const void *kv,        /* [rows, 2 columns], keys before values, stride kv_stride */
    const int32_t *places, /* [rows], each at most once */
    int64_t rows, int64_t columns, int64_t cache_rows, int64_t cache_stride, int64_t kv_stride, int32_t dtype,
    int32_t *error, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * sample: the token after each row of logits, the same for the same seed, sequence and draw.
 *
 * Filters apply in this order: temperature, top-k, top-p, min-p; ties go to the lower id. A filtered draw runs through
 * the tokens from the likeliest on, another in the order of the vocabulary. Probabilities are whole multiples of 2^-45
 * of the likeliest token's. A row with NaN or +inf, or of nothing but -inf, gets -1 and sets the error word.
 */

typedef struct {
    double temperature; /* divides the logits; 0: the largest logit */
    double top_p;       /* the likeliest tokens that reach this share together; 1: all */
    double min_p;       /* tokens at least this share as likely as the likeliest; 0: all */
    int64_t top_k;      /* that many of the likeliest tokens; 0: all */
    uint64_t seed;
} collimate_sampling;

int32_t collimate_sample(
    int32_t *tokens,          /* [rows] = */
    const void *logits,       /* [rows, vocab], stride row_stride; vocab is at most 2^19 */
    const int64_t *sequences, /* [rows] */
    const int64_t *draws,     /* [rows] how many numbers the sequence has drawn before */
    const collimate_sampling *sampling,
    int64_t rows, int64_t vocab, int64_t row_stride, int32_t dtype, int32_t *error, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * gae: generalised advantage estimation: delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}, the
 * value after the last token being 0; the return is A_t + V_t. In float64, rounded once.
 */

int32_t collimate_gae(
    float *advantages,        /* [tokens] =; tokens of no sequence are left alone */
    float *returns,           /* [tokens] =, likewise */
    const float *rewards,     /* [tokens] */
    const float *values,      /* [tokens] */
    const int32_t *cu_tokens, /* [sequences + 1]; sequence s is tokens cu_tokens[s] .. cu_tokens[s + 1] */
    int64_t sequences, double gamma, double lambda, void *stream);

/* (x - mean) / sqrt(variance + 1e-8), over all values. */
int32_t collimate_whiten(
    float *x, /* [count] = */
    int64_t count, void *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * ppo_loss: the clipped losses of policy and value on every token, and their gradients. Of a policy alone, or of values
 * alone, where the pointers of the other one are NULL. On whole completions (RLOO) a token is a completion.
 *
 * policy: max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + beta k3, rho = exp(clamp(logp - old_logp, -20, 20)),
 *         k3 = exp(-k) - 1 + k, k = max(logp - reference_logp, -20), flat below (GRPO);
 * value: max((V - R)^2, (clip(V, V_old +- value_clip) - R)^2) / 2.
 */

typedef struct {
    float clip;
    float beta; /* of the KL term */
    float value_clip;
    float value_coefficient; /* of the value's loss in the gradient */
    double normaliser;       /* tokens of the whole step, > 0 */
} collimate_ppo_config;

typedef struct {
    const float *logps;           /* [tokens]  NULL: no policy, and nothing of what follows is read or written up to weights */
    const float *old_logps;       /* [tokens] of the rollout */
    const float *advantages;      /* [tokens] A */
    const float *reference_logps; /* [tokens]  may be NULL: no KL term */
    const float *weights;         /* [tokens] of the policy's losses; may be NULL: 1 */
    const float *values;          /* [tokens] V  NULL: no values */
    const float *old_values;      /* [tokens] of the rollout */
    const float *returns;         /* [tokens] R */
    float *dlogps;                /* [tokens] =  weight d policy loss / d logp / normaliser */
    float *dvalues;               /* [tokens] =  value_coefficient d value loss / d V / normaliser */
    double *metrics;              /* [COLLIMATE_PPO_METRICS] +=  may be NULL */
    int64_t tokens;
} collimate_ppo_batch;

/* Sums over the tokens of the call. */
enum collimate_ppo_metric {
    COLLIMATE_PPO_POLICY_LOSS = 0, /* with the weights, and the KL term */
    COLLIMATE_PPO_VALUE_LOSS = 1, /* without the coefficient */
    COLLIMATE_PPO_RATIO = 2,
    COLLIMATE_PPO_POLICY_CLIPPED = 3,
    COLLIMATE_PPO_VALUE_CLIPPED = 4,
    COLLIMATE_PPO_TOKENS = 5,
    COLLIMATE_PPO_METRICS = 6
};

int32_t collimate_ppo_loss(const collimate_ppo_batch *batch, const collimate_ppo_config *config, void *stream);

#ifdef __cplusplus
}
#endif

#endif
