// What miners send: registrations and reports.
#include <string>

#include "net/convert.h"
#include "net/field_check.h"
#include "net/proto_fields.h"

namespace tessera::net {

void to_proto(const core::Registration& in, v1::Registration* out) {
  out->set_node(bytes_of(in.node));
  out->set_incarnation(in.incarnation);
  out->set_address(in.address);
  out->set_device(in.device);
  out->set_memory_bytes(in.memory_bytes);
  out->set_software(in.software);
  if (in.wanted_stage) out->set_wanted_stage(*in.wanted_stage);
}

Status from_proto(const v1::Registration& in, core::Registration* out) {
  FieldCheck check;
  check.bytes32("node", in.node(), &out->node);
  out->incarnation = in.incarnation();
  check.text("address", in.address(), kMaxShortText, &out->address);
  check.text("device", in.device(), kMaxShortText, &out->device);
  out->memory_bytes = in.memory_bytes();
  check.text("software", in.software(), kMaxShortText, &out->software);
  out->wanted_stage.reset();
  if (in.has_wanted_stage()) {
    check.number("wanted_stage", in.wanted_stage(), kMaxStages - 1, &out->wanted_stage.emplace());
  }
  return check.status();
}

void to_proto(const core::Receipt& in, v1::Receipt* out) {
  out->set_sequence(in.sequence);
  out->set_incarnation(in.incarnation);
  if (in.miner != kNoMiner) out->set_miner(in.miner);
  out->set_stage(in.stage);
  out->set_microbatch(in.microbatch);
  out->set_attempt(in.attempt);
  if (in.upstream != kNoMiner) out->set_upstream(in.upstream);
  if (in.downstream != kNoMiner) out->set_downstream(in.downstream);
  out->set_epoch(in.epoch);
  out->set_weight_version(in.weight_version);
  out->set_accumulated(in.accumulated);
  out->set_repaired(in.repaired);
  out->set_local_step(in.local_step);
  out->set_order(in.order);
  out->set_input_hash(bytes_or_empty(in.input_hash));
  out->set_output_hash(bytes_or_empty(in.output_hash));
  out->set_gradient_in_hash(bytes_or_empty(in.gradient_in_hash));
  out->set_gradient_out_hash(bytes_or_empty(in.gradient_out_hash));
  out->set_loss(in.loss);
  out->set_forward_ms(in.forward_ms);
  out->set_backward_ms(in.backward_ms);
  out->set_unix_ms(in.unix_ms);
  out->set_signature(in.signature.data(), in.signature.size());
}

Status from_proto(const v1::Receipt& in, core::Receipt* out) {
  FieldCheck check;
  out->sequence = in.sequence();
  out->incarnation = in.incarnation();
  out->miner = in.has_miner() ? in.miner() : kNoMiner;
  check.number("stage", in.stage(), kMaxStages - 1, &out->stage);
  out->microbatch = in.microbatch();
  out->attempt = in.attempt();
  out->upstream = in.has_upstream() ? in.upstream() : kNoMiner;
  out->downstream = in.has_downstream() ? in.downstream() : kNoMiner;
  out->epoch = in.epoch();
  out->weight_version = in.weight_version();
  out->accumulated = in.accumulated();
  out->repaired = in.repaired();
  out->local_step = in.local_step();
  out->order = in.order();
  check.bytes32_or_empty("input_hash", in.input_hash(), &out->input_hash);
  check.bytes32_or_empty("output_hash", in.output_hash(), &out->output_hash);
  check.bytes32_or_empty("gradient_in_hash", in.gradient_in_hash(), &out->gradient_in_hash);
  check.bytes32_or_empty("gradient_out_hash", in.gradient_out_hash(), &out->gradient_out_hash);
  out->loss = in.loss();
  out->forward_ms = in.forward_ms();
  out->backward_ms = in.backward_ms();
  out->unix_ms = in.unix_ms();
  check.signature("signature", in.signature(), &out->signature);
  return check.status();
}

void to_proto(const core::UploadCommit& in, v1::UploadCommit* out) {
  out->set_target(in.target);
  out->set_object(bytes_of(in.object));
  out->set_snapshot_step(in.snapshot_step);
  out->set_snapshot_version(in.snapshot_version);
  out->set_whole(in.whole);
  out->set_again(in.again);
  out->set_signature(in.signature.data(), in.signature.size());
}

Status from_proto(const v1::UploadCommit& in, core::UploadCommit* out) {
  FieldCheck check;
  out->target = in.target();
  check.bytes32("object", in.object(), &out->object);
  out->snapshot_step = in.snapshot_step();
  out->snapshot_version = in.snapshot_version();
  out->whole = in.whole();
  out->again = in.again();
  check.signature("signature", in.signature(), &out->signature);
  return check.status();
}

void to_proto(const core::UploadMeasure& in, v1::UploadMeasure* out) {
  out->set_energy(in.energy);
  out->set_alignment(in.alignment);
}

Status from_proto(const v1::UploadMeasure& in, core::UploadMeasure* out) {
  FieldCheck check;
  check.finite("energy", in.energy(), &out->energy);
  check.finite("alignment", in.alignment(), &out->alignment);
  return check.status();
}

void to_proto(const core::ShardCommit& in, v1::ShardCommit* out) {
  out->set_target(in.target);
  out->set_shard(in.shard);
  if (!in.result.is_zero()) out->set_result(bytes_of(in.result));
  if (!in.object.is_zero()) out->set_object(bytes_of(in.object));
  if (!in.unavailable.is_zero()) out->set_unavailable(bytes_of(in.unavailable));
  for (const core::UploadMeasure& measure : in.measures) to_proto(measure, out->add_measures());
  out->set_signature(in.signature.data(), in.signature.size());
}

Status from_proto(const v1::ShardCommit& in, core::ShardCommit* out) {
  FieldCheck check;
  out->target = in.target();
  out->shard = in.shard();
  check.bytes32_or_empty("result", in.result(), &out->result);
  check.bytes32_or_empty("object", in.object(), &out->object);
  check.bytes32_or_empty("unavailable", in.unavailable(), &out->unavailable);
  check.list("measures", in.measures(), core::kMaxUploads, &out->measures);
  check.signature("signature", in.signature(), &out->signature);
  return check.status();
}

void to_proto(const core::UnreadableResult& in, v1::UnreadableResult* out) {
  out->set_target(in.target);
  out->set_first_block(in.first_block);
}

Status from_proto(const v1::UnreadableResult& in, core::UnreadableResult* out) {
  out->target = in.target();
  out->first_block = in.first_block();
  return ok_status();
}

void to_proto(const core::MergeApplied& in, v1::MergeApplied* out) {
  out->set_epoch(in.epoch);
  out->set_state(bytes_of(in.state));
  out->set_version_after(in.version_after);
  out->set_local_step(in.local_step);
}

Status from_proto(const v1::MergeApplied& in, core::MergeApplied* out) {
  FieldCheck check;
  out->epoch = in.epoch();
  check.bytes32("state", in.state(), &out->state);
  out->version_after = in.version_after();
  out->local_step = in.local_step();
  return check.status();
}

void to_proto(const core::MinerStatus& in, v1::MinerStatus* out) {
  out->set_phase(static_cast<v1::MinerPhase>(in.phase));
  out->set_epoch(in.epoch);
  out->set_local_steps(in.local_steps);
  out->set_schedule_step(in.schedule_step);
  out->set_weight_version(in.weight_version);
  out->set_queued(in.queued);
  out->set_in_flight(in.in_flight);
  out->set_forward_ms(in.forward_ms);
  out->set_backward_ms(in.backward_ms);
  out->set_gradient_norm(in.gradient_norm);
  out->set_boundary_tensors_sent(in.boundary_tensors_sent);
  out->set_peer_bytes_sent(in.peer_bytes_sent);
  out->set_frames_refused(in.frames_refused);
  out->set_forwards(in.forwards);
  out->set_recomputed(in.recomputed);
  out->set_steps_lost(in.steps_lost);
  out->set_payloads_stored(in.payloads_stored);
  out->set_payloads_dropped(in.payloads_dropped);
  out->set_segment_copy_us(in.segment_copy_us);
}

Status from_proto(const v1::MinerStatus& in, core::MinerStatus* out) {
  FieldCheck check;
  check.enumeration("phase", in.phase(), core::MinerPhase::kDraining, &out->phase);
  out->epoch = in.epoch();
  out->local_steps = in.local_steps();
  out->schedule_step = in.schedule_step();
  out->weight_version = in.weight_version();
  out->queued = in.queued();
  out->in_flight = in.in_flight();
  out->forward_ms = in.forward_ms();
  out->backward_ms = in.backward_ms();
  out->gradient_norm = in.gradient_norm();
  out->boundary_tensors_sent = in.boundary_tensors_sent();
  out->peer_bytes_sent = in.peer_bytes_sent();
  out->frames_refused = in.frames_refused();
  out->forwards = in.forwards();
  out->recomputed = in.recomputed();
  out->steps_lost = in.steps_lost();
  out->payloads_stored = in.payloads_stored();
  out->payloads_dropped = in.payloads_dropped();
  out->segment_copy_us = in.segment_copy_us();
  return check.status();
}

void to_proto(const core::CheckpointCommit& in, v1::CheckpointCommit* out) {
  out->set_id(in.id);
  out->set_object(bytes_of(in.object));
  out->set_local_steps(in.local_steps);
  out->set_schedule_step(in.schedule_step);
  out->set_weight_version(in.weight_version);
  out->set_accumulated(in.accumulated);
}

Status from_proto(const v1::CheckpointCommit& in, core::CheckpointCommit* out) {
  FieldCheck check;
  out->id = in.id();
  check.bytes32("object", in.object(), &out->object);
  out->local_steps = in.local_steps();
  out->schedule_step = in.schedule_step();
  out->weight_version = in.weight_version();
  out->accumulated = in.accumulated();
  return check.status();
}

void to_proto(const core::SyncRequest& in, v1::SyncRequest* out) {
  if (in.miner != kNoMiner) out->set_miner(in.miner);
  out->set_incarnation(in.incarnation);
  to_proto(in.status, out->mutable_status());
  for (const core::Receipt& receipt : in.receipts) to_proto(receipt, out->add_receipts());
  out->set_lease_request(in.lease_request);
  out->set_leases_wanted(in.leases_wanted);
  if (in.upload) to_proto(*in.upload, out->mutable_upload());
  for (const core::ShardCommit& shard : in.shards) to_proto(shard, out->add_shards());
  out->set_sealed_heard(in.sealed_heard);
  if (in.applied) to_proto(*in.applied, out->mutable_applied());
  if (in.published_state) out->set_published_state(bytes_of(*in.published_state));
  if (in.checkpoint) to_proto(*in.checkpoint, out->mutable_checkpoint());
  out->set_peers_version(in.peers_version);
  out->set_spec_version(in.spec_version);
  for (const core::UnreadableResult& result : in.unreadable_results) to_proto(result, out->add_unreadable_results());
  if (in.segment) out->set_segment(encode(*in.segment));
}

Status from_proto(const v1::SyncRequest& in, core::SyncRequest* out) {
  *out = {};
  FieldCheck check;
  out->miner = in.has_miner() ? in.miner() : kNoMiner;
  out->incarnation = in.incarnation();
  check.present("status", in.has_status());
  check.nested("status", in.status(), &out->status);
  check.list("receipts", in.receipts(), core::kMaxReceiptsPerSync, &out->receipts);
  out->lease_request = in.lease_request();
  check.number("leases_wanted", in.leases_wanted(), kMaxLeases, &out->leases_wanted);
  if (in.has_upload()) check.nested("upload", in.upload(), &out->upload.emplace());
  check.list("shards", in.shards(), kMaxShards, &out->shards);
  out->sealed_heard = in.sealed_heard();
  if (in.has_applied()) check.nested("applied", in.applied(), &out->applied.emplace());
  if (in.has_published_state()) {
    check.bytes32("published_state", in.published_state(), &out->published_state.emplace());
  }
  if (in.has_checkpoint()) check.nested("checkpoint", in.checkpoint(), &out->checkpoint.emplace());
  out->peers_version = in.peers_version();
  out->spec_version = in.spec_version();
  check.list("unreadable_results", in.unreadable_results(), core::kMaxUnreadableResults, &out->unreadable_results);
  if (in.has_segment()) {
    core::SegmentCommit& segment = out->segment.emplace();
    const bool readable = in.segment().size() <= kMaxSegmentBytes && decode(in.segment(), &segment);
    check.require("segment", readable ? flaw_of(segment) : "it is not the canonical bytes of a commitment");
  }
  return check.status();
}

std::string flaw_of(const std::string& bytes, core::ValidatorReport* report) {
  if (!decode(bytes, report)) return "it is not the canonical bytes of a validator's report; do both sides run the same version?";
  if (report->device.size() > kMaxShortText || report->software.size() > kMaxShortText) return "device or software is too long";
  if (report->results.size() > core::kMaxResultsPerReport) return "too many results";
  for (const core::AuditResult& result : report->results) {
    if (result.finding > core::AuditFinding::kUnreadable) return "an unknown finding; upgrade this program";
    if (result.reason.size() > kMaxReason) return "a reason is too long";
  }
  return "";
}

}  // namespace tessera::net
