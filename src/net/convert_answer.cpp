// What the orchestrator and peers answer.
#include "net/convert.h"
#include "net/field_check.h"
#include "net/proto_fields.h"
#include "tessera/net/auth.h"

namespace tessera::net {

void to_proto(const core::RegisterAnswer& in, v1::RegisterAnswer* out) {
  out->set_refusal(static_cast<v1::RegisterRefusal>(in.refusal));
  out->set_message(in.message.substr(0, kMaxReason));
  if (in.miner != kNoMiner) out->set_miner(in.miner);
  out->set_session(in.session);
  out->set_run_id(in.run_id);
  out->set_run_spec(in.run_spec);
  out->set_data_plan(in.data_plan);
  out->set_lease_key(bytes_of(in.lease_key));
}

Status from_proto(const v1::RegisterAnswer& in, core::RegisterAnswer* out) {
  FieldCheck check;
  check.enumeration("refusal", in.refusal(), core::RegisterRefusal::kNotFitting, &out->refusal);
  check.text("message", in.message(), kMaxReason, &out->message);
  out->miner = in.has_miner() ? in.miner() : kNoMiner;
  check.text("session", in.session(), kMaxSessionBytes, &out->session);
  check.text("run_id", in.run_id(), kMaxRunIdBytes, &out->run_id);
  check.text("run_spec", in.run_spec(), kMaxRunSpecBytes, &out->run_spec);
  check.text("data_plan", in.data_plan(), kMaxDataPlanBytes, &out->data_plan);
  if (out->refusal == core::RegisterRefusal::kNone) check.bytes32("lease_key", in.lease_key(), &out->lease_key);
  return check.status();
}

void to_proto(const core::Lease& in, v1::Lease* out) {
  out->set_microbatch(in.microbatch);
  out->set_attempt(in.attempt);
  out->set_counted_stages(in.counted_stages);
  out->mutable_pathway()->Add(in.pathway.begin(), in.pathway.end());
  out->set_lifetime_ms(in.lifetime_ms);
  out->set_repair(in.repair);
  out->set_expires_unix_ms(in.expires_unix_ms);
  out->set_signature(in.signature.data(), in.signature.size());
}

Status from_proto(const v1::Lease& in, core::Lease* out) {
  FieldCheck check;
  out->microbatch = in.microbatch();
  out->attempt = in.attempt();
  out->counted_stages = in.counted_stages();
  if (check.count("pathway", in.pathway_size(), kMaxStages)) {
    out->pathway.assign(in.pathway().begin(), in.pathway().end());
  }
  out->lifetime_ms = in.lifetime_ms();
  out->repair = in.repair();
  out->expires_unix_ms = in.expires_unix_ms();
  check.signature("signature", in.signature(), &out->signature);
  return check.status();
}

void to_proto(const core::UploadRef& in, v1::UploadRef* out) {
  out->set_object(bytes_of(in.object));
  out->set_weight(in.weight);
}

Status from_proto(const v1::UploadRef& in, core::UploadRef* out) {
  FieldCheck check;
  check.bytes32("object", in.object(), &out->object);
  out->weight = in.weight();
  return check.status();
}

void to_proto(const core::ShardTask& in, v1::ShardTask* out) {
  out->set_shard(in.shard);
  out->set_first_block(in.first_block);
  out->set_block_count(in.block_count);
  out->set_token(bytes_of(in.token));
}

Status from_proto(const v1::ShardTask& in, core::ShardTask* out) {
  FieldCheck check;
  out->shard = in.shard();
  out->first_block = in.first_block();
  out->block_count = in.block_count();
  check.bytes32("token", in.token(), &out->token);
  return check.status();
}

void to_proto(const core::ResultCopy& in, v1::ResultCopy* out) {
  out->set_object(bytes_of(in.object));
  out->set_token(bytes_of(in.token));
}

Status from_proto(const v1::ResultCopy& in, core::ResultCopy* out) {
  FieldCheck check;
  check.bytes32("object", in.object(), &out->object);
  check.bytes32("token", in.token(), &out->token);
  return check.status();
}

void to_proto(const core::ShardResult& in, v1::ShardResult* out) {
  out->set_first_block(in.first_block);
  out->set_block_count(in.block_count);
  out->set_result(bytes_of(in.result));
  for (const core::ResultCopy& copy : in.copies) to_proto(copy, out->add_copies());
}

Status from_proto(const v1::ShardResult& in, core::ShardResult* out) {
  FieldCheck check;
  out->first_block = in.first_block();
  out->block_count = in.block_count();
  check.bytes32("result", in.result(), &out->result);
  check.list("copies", in.copies(), core::kMaxResultCopies, &out->copies);
  return check.status();
}

void to_proto(const core::SealedResult& in, v1::SealedResult* out) {
  out->set_first_block(in.first_block);
  out->set_block_count(in.block_count);
  out->set_object(bytes_of(in.object));
}

Status from_proto(const v1::SealedResult& in, core::SealedResult* out) {
  FieldCheck check;
  out->first_block = in.first_block();
  out->block_count = in.block_count();
  check.bytes32("object", in.object(), &out->object);
  return check.status();
}

void to_proto(const core::MergeDirective& in, v1::MergeDirective* out) {
  out->set_target(in.target);
  out->set_phase(static_cast<v1::MergePhase>(in.phase));
  for (const core::UploadRef& upload : in.uploads) to_proto(upload, out->add_uploads());
  for (const core::ShardTask& task : in.tasks) to_proto(task, out->add_tasks());
  for (const core::ShardResult& result : in.results) to_proto(result, out->add_results());
  out->set_participant(in.participant);
  out->set_outer_learning_rate(in.outer_learning_rate);
  out->set_outer_momentum(in.outer_momentum);
  out->set_drop_carry(in.drop_carry);
  out->set_uploads_whole(in.uploads_whole);
  out->set_again(in.again);
  out->set_rounds(in.rounds);
  for (const core::SealedResult& result : in.sealed) to_proto(result, out->add_sealed());
  out->set_sealed_heard(in.sealed_heard);
}

Status from_proto(const v1::MergeDirective& in, core::MergeDirective* out) {
  FieldCheck check;
  out->target = in.target();
  check.enumeration("phase", in.phase(), core::MergePhase::kApply, &out->phase);
  check.list("uploads", in.uploads(), core::kMaxUploads, &out->uploads);
  check.list("tasks", in.tasks(), kMaxShards, &out->tasks);
  check.list("results", in.results(), kMaxShards, &out->results);
  out->participant = in.participant();
  out->outer_learning_rate = in.outer_learning_rate();
  out->outer_momentum = in.outer_momentum();
  out->drop_carry = in.drop_carry();
  out->uploads_whole = in.uploads_whole();
  out->again = in.again();
  check.number("rounds", in.rounds(), core::kMaxUploads, &out->rounds);
  check.list("sealed", in.sealed(), core::kMaxSealedResults, &out->sealed);
  out->sealed_heard = in.sealed_heard();
  return check.status();
}

void to_proto(const core::Peer& in, v1::PeerEntry* out) {
  if (in.miner != kNoMiner) out->set_miner(in.miner);
  out->set_node(bytes_of(in.node));
  out->set_stage(in.stage);
  out->set_address(in.address);
  out->set_live(in.live);
  out->set_incarnation(in.incarnation);
}

Status from_proto(const v1::PeerEntry& in, core::Peer* out) {
  FieldCheck check;
  out->miner = in.has_miner() ? in.miner() : kNoMiner;
  check.bytes32("node", in.node(), &out->node);
  check.number("stage", in.stage(), kMaxStages - 1, &out->stage);
  check.text("address", in.address(), kMaxShortText, &out->address);
  out->live = in.live();
  out->incarnation = in.incarnation();
  return check.status();
}

void to_proto(const core::Assignment& in, v1::Assignment* out) {
  out->set_stage(in.stage);
  out->set_epoch(in.epoch);
  out->set_state(bytes_or_empty(in.state));
  out->set_local_state(bytes_or_empty(in.local_state));
  out->set_schedule_step(in.schedule_step);
  for (const core::Peer& donor : in.donors) to_proto(donor, out->add_donors());
}

Status from_proto(const v1::Assignment& in, core::Assignment* out) {
  FieldCheck check;
  check.number("stage", in.stage(), kMaxStages - 1, &out->stage);
  out->epoch = in.epoch();
  check.bytes32_or_empty("state", in.state(), &out->state);
  check.bytes32_or_empty("local_state", in.local_state(), &out->local_state);
  out->schedule_step = in.schedule_step();
  check.list("donors", in.donors(), core::kMaxDonors, &out->donors);
  return check.status();
}

void to_proto(const core::SyncAnswer& in, v1::SyncAnswer* out) {
  out->set_phase(static_cast<v1::RunPhase>(in.phase));
  out->set_reason(in.reason.substr(0, kMaxReason));
  out->set_known(in.known);
  out->set_receipts_acknowledged(in.receipts_acknowledged);
  out->set_lease_request(in.lease_request);
  for (const core::Lease& lease : in.leases) to_proto(lease, out->add_leases());
  out->set_peers_version(in.peers_version);
  if (in.peers) {
    v1::PeerTable* table = out->mutable_peers();  // present even when there are none
    for (const core::Peer& peer : *in.peers) to_proto(peer, table->add_peers());
  }
  if (in.assignment) to_proto(*in.assignment, out->mutable_assignment());
  if (in.merge) to_proto(*in.merge, out->mutable_merge());
  out->set_publish_state(in.publish_state);
  out->set_checkpoint(in.checkpoint);
  out->set_leave(in.leave);
  out->set_drain(in.drain);
  out->set_spec_version(in.spec_version);
  if (in.run_spec) out->set_run_spec(*in.run_spec);
  out->set_segment_known(in.segment_known);
}

Status from_proto(const v1::SyncAnswer& in, core::SyncAnswer* out) {
  *out = {};
  FieldCheck check;
  check.enumeration("phase", in.phase(), core::RunPhase::kRestaging, &out->phase);
  check.text("reason", in.reason(), kMaxReason, &out->reason);
  out->known = in.known();
  out->receipts_acknowledged = in.receipts_acknowledged();
  out->lease_request = in.lease_request();
  check.list("leases", in.leases(), kMaxLeases, &out->leases);
  out->peers_version = in.peers_version();
  if (in.has_peers()) check.list("peers", in.peers().peers(), kMaxPeers, &out->peers.emplace());
  if (in.has_assignment()) check.nested("assignment", in.assignment(), &out->assignment.emplace());
  if (in.has_merge()) check.nested("merge", in.merge(), &out->merge.emplace());
  out->publish_state = in.publish_state();
  out->checkpoint = in.checkpoint();
  out->leave = in.leave();
  out->drain = in.drain();
  out->spec_version = in.spec_version();
  if (in.has_run_spec()) check.text("run_spec", in.run_spec(), kMaxRunSpecBytes, &out->run_spec.emplace());
  out->segment_known = in.segment_known();
  return check.status();
}

void to_proto(const core::PeerHealth& in, v1::ProbeAnswer* out) {
  out->set_queued(in.queued);
  out->set_capacity(in.capacity);
  out->set_microbatch_ms(in.microbatch_ms);
}

Status from_proto(const v1::ProbeAnswer& in, core::PeerHealth* out) {
  FieldCheck check;
  out->queued = in.queued();
  out->capacity = in.capacity();
  check.duration("microbatch_ms", in.microbatch_ms(), &out->microbatch_ms);
  return check.status();
}

}  // namespace tessera::net
