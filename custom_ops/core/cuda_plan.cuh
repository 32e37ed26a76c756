// How much work a block gets, and how much workspace a pass takes: functions of the sizes (and of whether the
// card has tensor cores), so that the size of the workspace and the order of every sum are known beforehand.
#ifndef TFINV_CUSTOM_OPS_CORE_CUDA_PLAN_CUH_
#define TFINV_CUSTOM_OPS_CORE_CUDA_PLAN_CUH_

#include "cuda_routing.cuh"

namespace tfinv {
namespace cuda {

constexpr int64_t kFloat = sizeof(float);

// Passes that sum over children: partial [splits, B, J, sums].
struct AccumulatePlan {
  Lanes lanes;
  ChildWork work;
  int64_t shared_bytes, partial_floats;
};

template <class V>
AccumulatePlan PlanAccumulate(int64_t batch, int64_t children, int64_t parents, int samples, int sums) {
  AccumulatePlan plan;
  // As few warps in a block as leave no more blocks, so that the last block is about as full as the others.
  const int64_t warps_needed = CeilDiv(batch, int64_t{MakeLanes(parents, 1).groups} * samples);
  const int64_t blocks_needed = CeilDiv(warps_needed, kMaxThreads / kWarp);
  plan.lanes = MakeLanes(parents, static_cast<int>(CeilDiv(warps_needed, blocks_needed)));
  ChildWork& work = plan.work;
  work.batch_tiles = CeilDiv(batch, int64_t{plan.lanes.Slots()} * samples);
  const int64_t row_bytes = batch * parents * sums * kFloat;
  int64_t splits = CeilDiv(kTargetBlocks, work.batch_tiles * plan.lanes.parent_tiles);
  splits = Least(splits, CeilDiv(children, 4));
  splits = Least(splits, Most(1, kPartialBytes / row_bytes));
  work.children_per_split = CeilDiv(children, splits);
  work.splits = CeilDiv(children, work.children_per_split);
  const int64_t child_bytes = Most(1, Staging<V>::Bytes(1, plan.lanes.width));
  work.stage = static_cast<int>(Least(work.children_per_split, Most(1, kSharedBytes * 2 / 3 / child_bytes)));
  work.sums = sums;
  plan.shared_bytes = Staging<V>::Bytes(work.stage, plan.lanes.width);
  plan.partial_floats = work.splits * batch * parents * sums;
  return plan;
}

// The pass that writes the gradients: dweights and dbias [splits, ...] where there is more than one split.
struct RowPlan {
  Lanes lanes;
  RowWork work;
  int64_t shared_bytes, blocks, scratch_floats;
};

template <class V>
RowPlan PlanRows(const V& kind, int64_t batch, int64_t children, int64_t parents) {
  constexpr int64_t kMaxSplits = 32;
  RowPlan plan;
  plan.lanes = MakeLanes(parents, kRowThreads / kWarp);
  RowWork& work = plan.work;
  const int width = plan.lanes.width;
  work.row = kind.Vote() + 2;
  if constexpr (V::kFixed) work.row = (V::kVote + V::kPose + 2 + 3) / 4 * 4;
  const int64_t row_floats = int64_t{plan.lanes.Slots()} * width * work.row;
  work.batch_tiles = CeilDiv(batch, plan.lanes.Slots());
  const int64_t weight_bytes = children * parents * kind.Weight() * kFloat;
  const int64_t max_splits =
      Least(Least(kMaxSplits, work.batch_tiles), Most(1, kPartialBytes / weight_bytes));

  work.scratch = nullptr;
  work.children = 1;
  int64_t staged_floats = 0, dweights_floats = 0;
  if constexpr (V::kFixed) {
    // Children of a chunk share what is read for a sample; but every multiprocessor should have a chunk.
    for (work.children = 8;; --work.children) {
      staged_floats = Staging<V>::Bytes(work.children, width) / kFloat;
      dweights_floats = int64_t{work.children} * width * V::kWeight;
      const bool fits = (staged_floats + dweights_floats + row_floats) * kFloat <= kSharedBytes;
      if (work.children == 1 || (fits && CeilDiv(children, work.children) * max_splits >= kTargetBlocks))
        break;
    }
  }
  work.child_chunks = CeilDiv(children, work.children);
  work.tiles_per_split =
      CeilDiv(work.batch_tiles, Least(max_splits, CeilDiv(kTargetBlocks, work.child_chunks)));
  work.splits = CeilDiv(work.batch_tiles, work.tiles_per_split);
  work.dweights_offset = staged_floats;
  work.rows_offset = staged_floats + dweights_floats;
  plan.blocks = Least(work.child_chunks * work.splits, kMaxBlocks);
  plan.scratch_floats = 0;
  plan.shared_bytes = (staged_floats + dweights_floats + row_floats) * kFloat;
  if (!V::kFixed && plan.shared_bytes > kSharedBytes) {
    plan.blocks = Least(plan.blocks, Most(1, kPartialBytes / (row_floats * kFloat)));
    plan.scratch_floats = plan.blocks * row_floats;
    plan.shared_bytes = 0;
  }
  return plan;
}

template <class Step>
void LaunchAccumulate(Stream& stream, const AccumulatePlan& plan, const Inputs<typename Step::Kind>& in,
                      const typename Step::Data& data, int step, const Normalisers& normalisers,
                      float* partial) {
  stream.Launch(&AccumulateKernel<Step>, plan.work.Count(plan.lanes), plan.lanes.warps * kWarp,
                plan.shared_bytes, in, data, plan.lanes, plan.work, step, normalisers, partial);
}

template <class Step, bool kGradient>
void LaunchNormaliser(Stream& stream, const Inputs<typename Step::Kind>& in, const typename Step::Data& data,
                      int step, const Normalisers& normalisers) {
  const Lanes lanes = MakeLanes(in.parents, kMaxThreads / kWarp);
  if (!lanes.Wide()) return;
  stream.Launch(&NormaliserKernel<Step, kGradient>,
                CeilDiv(in.batch, lanes.warps) * CeilDiv(in.children, kNormaliserChildren),
                lanes.warps * kWarp, Staging<typename Step::Kind>::Bytes(kNormaliserChildren, lanes.width),
                in, data, lanes, step, normalisers);
}

// What the last pass writes to: the gradients themselves, or one partial array for each split.
struct GradientPieces {
  float *dweights, *dbias, *scratch;
};

inline GradientPieces TakeGradientPieces(Workspace& workspace, int64_t splits, int64_t weights,
                                         int64_t biases, int64_t scratch_floats) {
  GradientPieces pieces = {nullptr, nullptr, nullptr};
  if (splits > 1) {
    pieces.dweights = workspace.Take(splits * weights);
    pieces.dbias = workspace.Take(splits * biases);
  }
  if (scratch_floats) pieces.scratch = workspace.Take(scratch_floats);
  return pieces;
}

inline Gradients TargetOfSplits(int64_t splits, const GradientPieces& pieces, const Gradients& out) {
  Gradients target = out;
  if (splits > 1) target.dweights = pieces.dweights;
  if (splits > 1 && out.dbias) target.dbias = pieces.dbias;
  return target;
}

inline void LaunchSumOfSplits(Stream& stream, int64_t splits, int64_t weights, int64_t biases,
                              const GradientPieces& pieces, const Gradients& out) {
  if (splits == 1) return;
  LaunchSumParts(stream, pieces.dweights, splits, weights, out.dweights);
  if (out.dbias) LaunchSumParts(stream, pieces.dbias, splits, biases, out.dbias);
}

template <class Step>
void LaunchVoteGradient(Stream& stream, RowPlan plan, const Inputs<typename Step::Kind>& in,
                        const typename Step::Data& data, int iterations, const Normalisers& normalisers,
                        const GradientPieces& pieces, const Gradients& out) {
  const Gradients target = TargetOfSplits(plan.work.splits, pieces, out);
  plan.work.scratch = pieces.scratch;
  stream.Launch(&VoteGradientKernel<Step>, plan.blocks, kRowThreads, plan.shared_bytes, in, data, plan.lanes,
                plan.work, iterations, normalisers, target);
  const int64_t biases = in.children * in.parents;
  LaunchSumOfSplits(stream, plan.work.splits, biases * in.kind.Weight(), biases, pieces, out);
}

// [R, B, I] each, where a group of lanes does not see all parents.
inline Normalisers TakeNormalisers(Workspace& workspace, int64_t batch, int64_t children, int64_t parents,
                                   int iterations, bool gradient) {
  Normalisers normalisers = {nullptr, nullptr, nullptr};
  if (parents <= kWarp) return normalisers;
  normalisers.largest = workspace.Take(iterations * batch * children);
  normalisers.log_sum = workspace.Take(iterations * batch * children);
  if (gradient) normalisers.dlogr_sum = workspace.Take(iterations * batch * children);
  return normalisers;
}

inline Normalisers OfStep(const Normalisers& all, int64_t batch, int64_t children, int step) {
  const int64_t offset = step * batch * children;
  const auto moved = [&](float* values) { return values ? values + offset : nullptr; };
  return {moved(all.largest), moved(all.log_sum), moved(all.dlogr_sum)};
}

inline const char* CheckSizes(int64_t children, int64_t parents, int64_t pose, int64_t vote) {
  if (children < 1 || parents < 1 || pose < 1 || vote < 1) return "sizes must be at least 1";
  if (parents > INT_MAX || pose > INT_MAX || vote > INT_MAX / 4)
    return "sizes above 2^31 / 4 are not supported";
  return nullptr;
}

}  // namespace cuda
}  // namespace tfinv

#endif  // TFINV_CUSTOM_OPS_CORE_CUDA_PLAN_CUH_
