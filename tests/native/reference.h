// The routing of custom_ops/core/routing.h in plain loops: what the kernels are tested against.
//
// Written from the formulas alone: the votes are materialised, every intermediate of every iteration is kept,
// and the gradients go backwards through them one formula at a time. `Real` is double for the truth, and
// float to see how much of a difference is the rounding of single precision.
#ifndef TFINV_TESTS_NATIVE_REFERENCE_H_
#define TFINV_TESTS_NATIVE_REFERENCE_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "routing.h"

namespace tfinv {
namespace reference {

template <typename Real>
using Named = std::vector<std::pair<std::string, std::vector<Real>>>;

// Empty bias: none. Empty doutputs: forward only.
template <typename Real>
struct DynamicInputs {
  std::vector<Real> poses, weights, bias, doutputs;

  std::vector<std::vector<Real>*> Tensors() { return {&poses, &weights, &bias, &doutputs}; }
};

template <typename Real>
struct DynamicResults {
  std::vector<Real> outputs, sums, dposes, dweights, dbias;

  Named<Real> Tensors(const DynamicDims&) const {
    return {{"outputs", outputs}, {"sums", sums}, {"dposes", dposes}, {"dweights", dweights},
            {"dbias", dbias}};
  }
};

template <typename Real>
struct EmInputs {
  std::vector<Real> poses, activations, weights, beta_u, beta_a, bias, doutputs, doutput_activations;

  std::vector<std::vector<Real>*> Tensors() {
    return {&poses, &activations, &weights, &beta_u, &beta_a, &bias, &doutputs, &doutput_activations};
  }
};

template <typename Real>
struct EmResults {
  std::vector<Real> outputs, output_activations, statistics, dposes, dactivations, dweights, dbeta_u, dbeta_a,
      dbias;

  // The three kinds of statistics differ in size, so each is judged by itself.
  Named<Real> Tensors(const EmDims& dims) const {
    const size_t row = static_cast<size_t>(2 * dims.pose_size * dims.pose_size + 1);
    std::vector<Real> kinds[3];
    for (size_t n = 0; n < statistics.size(); ++n) {
      kinds[n % row == row - 1 ? 2 : n % row < row / 2 ? 0 : 1].push_back(statistics[n]);
    }
    return {{"outputs", outputs}, {"output_activations", output_activations}, {"means", kinds[0]},
            {"variances", kinds[1]}, {"logmass", kinds[2]}, {"dposes", dposes},
            {"dactivations", dactivations}, {"dweights", dweights}, {"dbeta_u", dbeta_u},
            {"dbeta_a", dbeta_a}, {"dbias", dbias}};
  }
};

// result[j] = values[j] - log sum exp(values), over `count` values.
template <typename Real>
std::vector<Real> LogSoftmax(const std::vector<Real>& values) {
  Real highest = values[0], total = 0;
  for (Real value : values) highest = std::fmax(highest, value);
  for (Real value : values) total += std::exp(value - highest);
  std::vector<Real> result;
  for (Real value : values) result.push_back(value - highest - std::log(total));
  return result;
}

// From the gradient of log softmax to that of its argument, in place.
template <typename Real>
void LogSoftmaxBackward(const std::vector<Real>& result, std::vector<Real>& gradient) {
  Real total = 0;
  for (Real value : gradient) total += value;
  for (size_t j = 0; j < result.size(); ++j) gradient[j] -= std::exp(result[j]) * total;
}

template <typename Real>
DynamicResults<Real> Dynamic(const DynamicDims& dims, const DynamicInputs<Real>& in) {
  const int64_t B = dims.batch, I = dims.children, J = dims.parents, K = dims.child_dim, D = dims.parent_dim;
  const int R = dims.iterations;
  const bool backward = !in.doutputs.empty() || B == 0;
  DynamicResults<Real> out;
  out.outputs.assign(B * J * D, 0);
  out.sums.assign(R * B * J * D, 0);
  if (backward) {
    out.dposes.assign(B * I * K, 0);
    out.dweights.assign(I * J * K * D, 0);
    out.dbias.assign(in.bias.size(), 0);
  }
  for (int64_t b = 0; b < B; ++b) {
    std::vector<Real> votes(I * J * D, 0);
    for (int64_t ij = 0; ij < I * J; ++ij)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t d = 0; d < D; ++d)
          votes[ij * D + d] += in.poses[(b * I + ij / J) * K + k] * in.weights[(ij * K + k) * D + d];

    // Forward: coupling[t], squashed[t] and total[t] = v_1 + ... + v_{t-1} of each iteration.
    std::vector<std::vector<Real>> coupling(R), squashed(R), total(R);
    for (int t = 0; t < R; ++t) {
      total[t].assign(J * D, 0);
      if (t > 0)
        for (int64_t n = 0; n < J * D; ++n) total[t][n] = total[t - 1][n] + squashed[t - 1][n];
      Real* sums = out.sums.data() + (t * B + b) * J * D;
      for (int64_t i = 0; i < I; ++i) {
        std::vector<Real> logits(J, 0);
        for (int64_t j = 0; j < J; ++j) {
          if (!in.bias.empty()) logits[j] = in.bias[i * J + j];
          for (int64_t d = 0; d < D; ++d) logits[j] += votes[(i * J + j) * D + d] * total[t][j * D + d];
        }
        const std::vector<Real> logs = LogSoftmax(logits);
        for (int64_t j = 0; j < J; ++j) {
          coupling[t].push_back(std::exp(logs[j]));
          for (int64_t d = 0; d < D; ++d) sums[j * D + d] += coupling[t].back() * votes[(i * J + j) * D + d];
        }
      }
      for (int64_t j = 0; j < J; ++j) {
        Real squared = 0;
        for (int64_t d = 0; d < D; ++d) squared += sums[j * D + d] * sums[j * D + d];
        for (int64_t d = 0; d < D; ++d)
          squashed[t].push_back(sums[j * D + d] * std::sqrt(squared) / (1 + squared));
      }
    }
    for (int64_t n = 0; n < J * D; ++n) out.outputs[b * J * D + n] = squashed[R - 1][n];
    if (!backward) continue;

    // Backward: dsquashed is the gradient of v_t; total[t] hands its own to every earlier v.
    std::vector<Real> dvotes(I * J * D, 0);
    std::vector<Real> dsquashed(in.doutputs.begin() + b * J * D, in.doutputs.begin() + (b + 1) * J * D);
    for (int t = R - 1; t >= 0; --t) {
      const Real* sums = out.sums.data() + (t * B + b) * J * D;
      std::vector<Real> dsums(J * D, 0), dtotal(J * D, 0);
      for (int64_t j = 0; j < J; ++j) {
        Real squared = 0, along = 0;
        for (int64_t d = 0; d < D; ++d) {
          squared += sums[j * D + d] * sums[j * D + d];
          along += sums[j * D + d] * dsquashed[j * D + d];
        }
        // v = s n / (1 + n^2), n = |s|; d/dn of n / (1 + n^2) is (1 - n^2) / (1 + n^2)^2. Both vanish at 0.
        const Real norm = std::sqrt(squared);
        const Real slope = norm > 0 ? (1 - squared) / ((1 + squared) * (1 + squared)) * along / norm : 0;
        for (int64_t d = 0; d < D; ++d)
          dsums[j * D + d] = dsquashed[j * D + d] * norm / (1 + squared) + sums[j * D + d] * slope;
      }
      for (int64_t i = 0; i < I; ++i) {
        std::vector<Real> dcoupling(J, 0);
        Real expected = 0;
        for (int64_t j = 0; j < J; ++j) {
          const int64_t ij = i * J + j;
          for (int64_t d = 0; d < D; ++d) {
            dcoupling[j] += dsums[j * D + d] * votes[ij * D + d];
            dvotes[ij * D + d] += coupling[t][ij] * dsums[j * D + d];
          }
          expected += coupling[t][ij] * dcoupling[j];
        }
        for (int64_t j = 0; j < J; ++j) {
          const int64_t ij = i * J + j;
          const Real dlogit = coupling[t][ij] * (dcoupling[j] - expected);
          if (!in.bias.empty()) out.dbias[ij] += dlogit;
          for (int64_t d = 0; d < D; ++d) {
            dvotes[ij * D + d] += dlogit * total[t][j * D + d];
            dtotal[j * D + d] += dlogit * votes[ij * D + d];
          }
        }
      }
      // v_{t-1} is in total[t], total[t + 1], ...: keep adding; doutputs belongs to v_R alone.
      for (int64_t n = 0; n < J * D; ++n) dsquashed[n] = (t == R - 1 ? 0 : dsquashed[n]) + dtotal[n];
    }
    for (int64_t ij = 0; ij < I * J; ++ij)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t d = 0; d < D; ++d) {
          const int64_t pose = (b * I + ij / J) * K + k, weight = (ij * K + k) * D + d;
          out.dposes[pose] += dvotes[ij * D + d] * in.weights[weight];
          out.dweights[weight] += dvotes[ij * D + d] * in.poses[pose];
        }
  }
  return out;
}

// What one iteration of EM computes; indices [i * J + j], [j] or [j * H + h].
template <typename Real>
struct EmIteration {
  std::vector<Real> logr, rho, mean, variance, logmass, cost, x, loga;
};

template <typename Real>
EmResults<Real> Em(const EmDims& dims, const EmInputs<Real>& in) {
  const int64_t B = dims.batch, I = dims.children, J = dims.parents, P = dims.pose_size, H = P * P;
  const int R = dims.iterations;
  const bool paper = dims.variant == EmVariant::kHinton2018;
  const bool backward = !in.doutputs.empty() || B == 0;
  const Real floor = kActivationFloor;
  EmResults<Real> out;
  out.outputs.assign(B * J * H, 0);
  out.output_activations.assign(B * J, 0);
  out.statistics.assign(R * B * J * (2 * H + 1), 0);
  if (backward) {
    out.dposes.assign(B * I * H, 0);
    out.dactivations.assign(B * I, 0);
    out.dweights.assign(I * J * H, 0);
    out.dbeta_u.assign(J, 0);
    out.dbeta_a.assign(J, 0);
    out.dbias.assign(in.bias.size(), 0);
  }
  // The matrix product, component (p, q) of votes[i, j], summed over n.
  const auto each_product = [&](int64_t b, auto visit) {
    for (int64_t ij = 0; ij < I * J; ++ij)
      for (int64_t p = 0; p < P; ++p)
        for (int64_t q = 0; q < P; ++q)
          for (int64_t n = 0; n < P; ++n)
            visit(ij * H + p * P + q, (b * I + ij / J) * H + p * P + n, ij * H + n * P + q);
  };
  const auto row = [&](const std::vector<Real>& matrix, int64_t i) {
    return std::vector<Real>(matrix.begin() + i * J, matrix.begin() + (i + 1) * J);
  };
  for (int64_t b = 0; b < B; ++b) {
    std::vector<Real> votes(I * J * H, 0);
    each_product(b, [&](int64_t vote, int64_t pose, int64_t weight) {
      votes[vote] += in.poses[pose] * in.weights[weight];
    });

    std::vector<EmIteration<Real>> steps(R);
    for (int t = 0; t < R; ++t) {
      EmIteration<Real>& now = steps[t];
      for (int64_t i = 0; i < I; ++i) {
        std::vector<Real> logits(J, 0);
        for (int64_t j = 0; j < J; ++j) {
          if (t == 0) {
            if (!in.bias.empty()) logits[j] = in.bias[i * J + j];
            continue;
          }
          logits[j] = steps[t - 1].loga[j];
          for (int64_t h = 0; h < H; ++h) {
            const Real away = votes[(i * J + j) * H + h] - steps[t - 1].mean[j * H + h];
            const Real variance = steps[t - 1].variance[j * H + h];
            logits[j] -= (away * away / variance + std::log(variance)) / 2;
          }
        }
        for (Real value : LogSoftmax(logits)) now.logr.push_back(value);
      }
      std::vector<Real> logw = now.logr;
      if (paper)
        for (int64_t ij = 0; ij < I * J; ++ij)
          logw[ij] += std::log(std::fmax(in.activations[b * I + ij / J], floor));
      now.rho.assign(I * J, 0);
      now.mean.assign(J * H, 0);
      now.variance.assign(J * H, static_cast<Real>(dims.variance_floor));
      const Real temperature = dims.inverse_temperatures[t];
      for (int64_t j = 0; j < J; ++j) {
        std::vector<Real> column;
        for (int64_t i = 0; i < I; ++i) column.push_back(logw[i * J + j]);
        const std::vector<Real> logs = LogSoftmax(column);
        now.logmass.push_back(column[0] - logs[0]);
        for (int64_t i = 0; i < I; ++i) now.rho[i * J + j] = std::exp(logs[i]);
        Real cost = in.beta_u[j];
        for (int64_t h = 0; h < H; ++h) {
          Real &mean = now.mean[j * H + h], &variance = now.variance[j * H + h];
          for (int64_t i = 0; i < I; ++i) mean += now.rho[i * J + j] * votes[(i * J + j) * H + h];
          for (int64_t i = 0; i < I; ++i) {
            const Real away = votes[(i * J + j) * H + h] - mean;
            variance += now.rho[i * J + j] * away * away;
          }
          cost += std::log(variance) / 2;
        }
        now.cost.push_back(cost);
        now.x.push_back(temperature * (in.beta_a[j] - std::exp(now.logmass[j]) * cost));
        now.loga.push_back(std::fmin(now.x[j], Real(0)) - std::log1p(std::exp(-std::fabs(now.x[j]))));
        Real* saved = out.statistics.data() + ((t * B + b) * J + j) * (2 * H + 1);
        for (int64_t h = 0; h < H; ++h) {
          saved[h] = now.mean[j * H + h];
          saved[H + h] = now.variance[j * H + h];
        }
        saved[2 * H] = now.logmass[j];
      }
      if (!paper) now.loga = LogSoftmax(now.x);
    }
    for (int64_t n = 0; n < J * H; ++n) out.outputs[b * J * H + n] = steps[R - 1].mean[n];
    for (int64_t j = 0; j < J; ++j) out.output_activations[b * J + j] = std::exp(steps[R - 1].loga[j]);
    if (!backward) continue;

    std::vector<Real> dvotes(I * J * H, 0), dvariance(J * H, 0), dloga(J, 0);
    std::vector<Real> dmean(in.doutputs.begin() + b * J * H, in.doutputs.begin() + (b + 1) * J * H);
    for (int64_t j = 0; j < J; ++j)
      dloga[j] = in.doutput_activations[b * J + j] * out.output_activations[b * J + j];
    for (int t = R - 1; t >= 0; --t) {
      const EmIteration<Real>& now = steps[t];
      // M-step, from dmean, dvariance and dloga of this iteration to dlogr.
      std::vector<Real> dx = dloga;
      if (paper) {
        for (int64_t j = 0; j < J; ++j) dx[j] /= 1 + std::exp(now.x[j]);  // 1 - sigmoid(x)
      } else {
        LogSoftmaxBackward(now.loga, dx);
      }
      std::vector<Real> dlogr(I * J, 0);
      for (int64_t j = 0; j < J; ++j) {
        const Real pull = dims.inverse_temperatures[t] * dx[j], mass = std::exp(now.logmass[j]);
        out.dbeta_a[j] += pull;
        out.dbeta_u[j] -= pull * mass;
        for (int64_t h = 0; h < H; ++h) dvariance[j * H + h] -= pull * mass / (2 * now.variance[j * H + h]);
        for (int64_t h = 0; h < H; ++h) {
          Real shift = 0;
          for (int64_t i = 0; i < I; ++i)
            shift += now.rho[i * J + j] * (votes[(i * J + j) * H + h] - now.mean[j * H + h]);
          dmean[j * H + h] -= 2 * dvariance[j * H + h] * shift;  // 0 but for rounding
        }
        std::vector<Real> drho(I, 0);
        Real dlogmass = -pull * mass * now.cost[j];
        for (int64_t i = 0; i < I; ++i) {
          const int64_t ij = i * J + j;
          for (int64_t h = 0; h < H; ++h) {
            const Real vote = votes[ij * H + h], away = vote - now.mean[j * H + h];
            drho[i] += dvariance[j * H + h] * away * away + dmean[j * H + h] * vote;
            dvotes[ij * H + h] += now.rho[ij] * (2 * dvariance[j * H + h] * away + dmean[j * H + h]);
          }
          dlogmass -= now.rho[ij] * drho[i];
        }
        for (int64_t i = 0; i < I; ++i) dlogr[i * J + j] = now.rho[i * J + j] * (drho[i] + dlogmass);
      }
      if (paper)
        for (int64_t ij = 0; ij < I * J; ++ij) {
          const Real activation = in.activations[b * I + ij / J];
          if (activation > floor) out.dactivations[b * I + ij / J] += dlogr[ij] / activation;
        }
      // E-step of the iteration before, or the bias.
      dmean.assign(J * H, 0);
      dvariance.assign(J * H, 0);
      dloga.assign(J, 0);
      for (int64_t i = 0; i < I; ++i) {
        std::vector<Real> dlogits = row(dlogr, i);
        LogSoftmaxBackward(row(now.logr, i), dlogits);
        for (int64_t j = 0; j < J; ++j) {
          const int64_t ij = i * J + j;
          if (t == 0) {
            if (!in.bias.empty()) out.dbias[ij] += dlogits[j];
            continue;
          }
          dloga[j] += dlogits[j];
          for (int64_t h = 0; h < H; ++h) {
            const Real variance = steps[t - 1].variance[j * H + h];
            const Real scaled = (votes[ij * H + h] - steps[t - 1].mean[j * H + h]) / variance;
            dvotes[ij * H + h] -= dlogits[j] * scaled;
            dmean[j * H + h] += dlogits[j] * scaled;
            dvariance[j * H + h] += dlogits[j] * (scaled * scaled - 1 / variance) / 2;
          }
        }
      }
    }
    each_product(b, [&](int64_t vote, int64_t pose, int64_t weight) {
      out.dposes[pose] += dvotes[vote] * in.weights[weight];
      out.dweights[weight] += dvotes[vote] * in.poses[pose];
    });
  }
  return out;
}

}  // namespace reference
}  // namespace tfinv

#endif  // TFINV_TESTS_NATIVE_REFERENCE_H_
