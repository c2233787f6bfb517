// tessera-bench transport: frames over the real peer link between two processes, beside the same
// frames over one TCP socket between the same two processes.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <future>
#include <memory>
#include <mutex>
#include <vector>

#include "apps/bench/bench.h"
#include "apps/bench/raw_tcp.h"
#include "apps/bench/transport_receiver.h"
#include "tessera/base/prng.h"
#include "tessera/net/grpc_setup.h"
#include "tessera/net/links.h"

namespace tessera::apps {
namespace {

constexpr uint32_t kTimeoutMs = 60000;
constexpr size_t kSmallFrameBytes = 4192;  // a backward of configs/quickstart.yaml
constexpr double kMegabyte = 1e6;

struct TransportBenchOptions {
  std::string json;
  std::vector<uint32_t> sizes_mib = {1, 4, 16, 64};
  uint32_t block_mib = 256;
  uint32_t blocks = 5;
  uint32_t round_trips = 2000;
};

double seconds_of(const std::function<Status()>& work, Status* status) {
  const auto begin = std::chrono::steady_clock::now();
  *status = work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Enough under way to keep the path full, in both transports.
size_t window_of(size_t frame_bytes) {
  return std::clamp<size_t>((size_t{32} << 20) / frame_bytes, 2, 16);
}

std::vector<std::string> frames_of(size_t frame_bytes, size_t count) {
  Prng random(frame_bytes);
  std::string pattern(frame_bytes, '\0');
  for (char& byte : pattern) byte = static_cast<char>(random.next());
  return std::vector<std::string>(count, pattern);
}

// Counts frames under way, and remembers the first that was not accepted.
class Window {
 public:
  explicit Window(size_t size) : size_(size) {}
  void enter() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return under_way_ < size_; });
    ++under_way_;
  }
  bool try_enter() {
    std::lock_guard lock(mutex_);
    if (under_way_ >= size_) return false;
    ++under_way_;
    return true;
  }
  void leave(core::Admission admission) {
    std::lock_guard lock(mutex_);
    if (admission != core::Admission::kAccepted) refused_ = admission;
    --under_way_;
    changed_.notify_all();
  }
  Status wait_for_all() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return under_way_ == 0; });
    if (refused_) return unavailable("a frame was refused: {}", core::name_of(*refused_));
    return ok_status();
  }

 private:
  const size_t size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t under_way_ = 0;
  std::optional<core::Admission> refused_;
};

class TransportBench {
 public:
  TransportBench(const TransportReceiver& receiver, TcpSocket socket)
      : link_(net::GrpcPeerLink::create({.signer = std::make_shared<net::RequestSigner>(
                                             KeyPair::from_seed(std::string(32, 's')))})),
        socket_(std::move(socket)) {
    link_->set_run(kBenchRun);
    peer_.node = TransportReceiver::key().id();
    peer_.address = receiver.peer_address();
  }

  // MB/s, the best of the blocks, each transport in turn.
  StatusOr<nlohmann::json> throughput(size_t frame_bytes, const TransportBenchOptions& options) {
    const size_t count = std::max<size_t>((size_t{options.block_mib} << 20) / frame_bytes, 2);
    const double megabytes = static_cast<double>(frame_bytes * count) / kMegabyte;
    const size_t window = window_of(frame_bytes);
    double best_link = 0, best_tcp = 0;
    for (uint32_t block = 0; block < options.blocks; ++block) {
      Status status;
      std::vector<std::string> frames = frames_of(frame_bytes, count);
      const double tcp = seconds_of([&] { return send_tcp_frames(socket_, frames, window); }, &status);
      TESSERA_RETURN_IF_ERROR(status);
      const double link = seconds_of([&] { return send_frames(std::move(frames), window); }, &status);
      TESSERA_RETURN_IF_ERROR(status);
      best_tcp = std::max(best_tcp, megabytes / tcp);
      best_link = std::max(best_link, megabytes / link);
    }
    return nlohmann::json{{"frame_bytes", frame_bytes},
                          {"link_mb_s", best_link},
                          {"tcp_mb_s", best_tcp},
                          {"ratio", best_link / best_tcp}};
  }

  // Microseconds from send to admission, one frame at a time.
  StatusOr<nlohmann::json> latency(uint32_t round_trips) {
    std::vector<double> link_us, tcp_us;
    for (uint32_t i = 0; i < round_trips; ++i) {
      std::vector<std::string> frame = frames_of(kSmallFrameBytes, 1);
      Status status;
      tcp_us.push_back(1e6 * seconds_of([&] { return send_tcp_frames(socket_, frame, 1); }, &status));
      TESSERA_RETURN_IF_ERROR(status);
      link_us.push_back(1e6 * seconds_of([&] { return send_frames(std::move(frame), 1); }, &status));
      TESSERA_RETURN_IF_ERROR(status);
    }
    return nlohmann::json{{"frame_bytes", kSmallFrameBytes},
                          {"link_us", percentiles(link_us)},
                          {"tcp_us", percentiles(tcp_us)}};
  }

  // Microseconds of a probe while nothing else is sent, and while large frames are.
  StatusOr<nlohmann::json> probes(uint32_t round_trips) {
    TESSERA_ASSIGN_OR_RETURN(const std::vector<double> idle, probe_times(round_trips, nullptr));
    constexpr size_t kBulkBytes = size_t{16} << 20;
    const std::vector<std::string> bulk = frames_of(kBulkBytes, 1);
    TESSERA_ASSIGN_OR_RETURN(const std::vector<double> busy, probe_times(round_trips, &bulk[0]));
    return nlohmann::json{{"idle_us", percentiles(idle)},
                          {"beside_bytes", kBulkBytes},
                          {"beside_bulk_us", percentiles(busy)}};
  }

 private:
  static nlohmann::json percentiles(std::vector<double> times) {
    std::sort(times.begin(), times.end());
    const auto at = [&](double share) {
      return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
    };
    return {{"p50", at(0.5)}, {"p99", at(0.99)}};
  }

  Status send_frames(std::vector<std::string> frames, size_t size) {
    const auto window = std::make_shared<Window>(size);
    for (std::string& frame : frames) {
      window->enter();
      link_->send(peer_, std::move(frame), kTimeoutMs,
                  [window](core::Admission admission) { window->leave(admission); });
    }
    return window->wait_for_all();
  }

  // With `bulk`, two copies of it are always under way.
  StatusOr<std::vector<double>> probe_times(uint32_t count, const std::string* bulk) {
    const auto window = std::make_shared<Window>(2);
    std::vector<double> times;
    for (uint32_t i = 0; i < count; ++i) {
      while (bulk != nullptr && window->try_enter()) {
        link_->send(peer_, *bulk, kTimeoutMs,
                    [window](core::Admission admission) { window->leave(admission); });
      }
      Status status;
      times.push_back(1e6 * seconds_of([&] { return probe_once(); }, &status));
      TESSERA_RETURN_IF_ERROR(status);
    }
    TESSERA_RETURN_IF_ERROR(window->wait_for_all());
    return times;
  }

  Status probe_once() {
    const auto answer = std::make_shared<std::promise<Status>>();
    link_->probe(peer_, kTimeoutMs, [answer](const StatusOr<core::PeerHealth>& health) {
      answer->set_value(health.status());
    });
    return answer->get_future().get();
  }

  const std::unique_ptr<net::GrpcPeerLink> link_;
  const TcpSocket socket_;
  core::Peer peer_;
};

Status run_transport_bench(const TransportBenchOptions& options) {
  net::prepare_grpc();
  TESSERA_ASSIGN_OR_RETURN(const auto receiver, TransportReceiver::start());
  TESSERA_ASSIGN_OR_RETURN(TcpSocket socket, TcpSocket::connected_to(receiver->tcp_port()));
  TransportBench bench(*receiver, std::move(socket));
  nlohmann::json report = {{"frames", nlohmann::json::array()}};
  std::printf("%10s %12s %12s %8s\n", "frame MiB", "link MB/s", "TCP MB/s", "ratio");
  for (const uint32_t mib : options.sizes_mib) {
    TESSERA_ASSIGN_OR_RETURN(nlohmann::json row, bench.throughput(size_t{mib} << 20, options));
    std::printf("%10u %12.0f %12.0f %8.2f\n", mib, row["link_mb_s"].get<double>(),
                row["tcp_mb_s"].get<double>(), row["ratio"].get<double>());
    std::fflush(stdout);
    report["frames"].push_back(std::move(row));
  }
  TESSERA_ASSIGN_OR_RETURN(report["latency"], bench.latency(options.round_trips));
  TESSERA_ASSIGN_OR_RETURN(report["probe"], bench.probes(options.round_trips / 10 + 1));
  std::printf("%34s %9s %9s\n", "microseconds", "p50", "p99");
  const auto print = [](const char* name, const nlohmann::json& times) {
    std::printf("%34s %9.0f %9.0f\n", name, times["p50"].get<double>(), times["p99"].get<double>());
  };
  print("4 kB frame to admission, link", report["latency"]["link_us"]);
  print("4 kB frame to answer, TCP", report["latency"]["tcp_us"]);
  print("probe", report["probe"]["idle_us"]);
  print("probe beside 16 MiB frames", report["probe"]["beside_bulk_us"]);
  return write_report(options.json, report);
}

}  // namespace

void add_transport_bench(CLI::App* app) {
  auto options = std::make_shared<TransportBenchOptions>();
  CLI::App* command = app->add_subcommand(
      "transport",
      "MB/s and latency of frames between two processes over loopback: the peer link beside one "
      "plain TCP socket, in turn");
  command->add_option("--size-mib", options->sizes_mib, "Frame sizes; several may be given")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--block-mib", options->block_mib, "What a timed block sends")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--blocks", options->blocks, "The best one counts")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  command->add_option("--round-trips", options->round_trips, "Of the latency")
      ->check(CLI::Range(10, 1000000))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write the tables there");
  on_call(command, [options] { return run_transport_bench(*options); });
}

}  // namespace tessera::apps
