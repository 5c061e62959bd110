#include "checkpoint/quantize.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <system_error>

#include "base/error.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "checkpoint/export.h"
#include "checkpoint/quantize_plan.h"
#include "checkpoint/writer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// A directory that goes unless it is renamed to its final name.
class NewDirectory {
 public:
  explicit NewDirectory(fs::path target) : target_(std::move(target)), temp_(target_) {
    temp_ += ".tmp." + std::to_string(::getpid());
    std::error_code error;
    if (!fs::create_directory(temp_, error))
      fail("{}: cannot create: {}", temp_.string(),
           error ? error.message() : "it exists; remove it");
  }
  ~NewDirectory() {
    std::error_code ignored;
    fs::remove_all(temp_, ignored);
  }
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;
  const fs::path& path() const { return temp_; }
  void commit() {
    std::error_code error;
    fs::rename(temp_, target_, error);
    require(!error, "{}: cannot rename {} to it: {}", target_.string(), temp_.string(),
            error.message());
  }

 private:
  fs::path target_, temp_;
};

// `target` without a trailing slash. UsageError unless it can be created.
fs::path check_target(fs::path target) {
  if (target.filename().empty()) target = target.parent_path();
  std::error_code error;
  if (fs::exists(fs::symlink_status(target, error)))
    fail_usage("{}: it exists; give another name, or remove it first", target.string());
  const fs::path parent = target.has_parent_path() ? target.parent_path() : ".";
  if (!fs::is_directory(parent, error))
    fail_usage("{}: there is no such directory to create {} in", parent.string(),
               target.filename().string());
  return target;
}

void check_space(const fs::path& directory, std::uint64_t needed) {
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  require(error || space.available >= needed,
          "{}: {} bytes are needed, {} are free; free some or write to another disk",
          directory.string(), needed, space.available);
}

// Errors of one row, or of a whole matrix, against the source.
struct Errors {
  double squares = 0, of = 0, largest = 0;  // sum (new - old)^2, sum old^2, max |new - old|
  void add(double was, double is) {
    squares += (is - was) * (is - was);
    of += was * was;
    largest = std::max(largest, std::fabs(is - was));
  }
  void add(const Errors& e) {
    squares += e.squares;
    of += e.of;
    largest = std::max(largest, e.largest);
  }
  double relative() const { return of > 0 ? std::sqrt(squares / of) : 0; }
};

// Converts one matrix and hands its data to the writer, a block of rows at a time. The threads take
// parts of a block as they are free; a row's result is its own, so that no order shows.
class MatrixRun {
 public:
  MatrixRun(const WeightSource& source, const QuantizeStep& step, const QuantizeOptions& options,
            ThreadPool& pool)
      : source_(source),
        step_(step),
        options_(options),
        pool_(pool),
        n_(source.format().n),
        k_(source.format().k),
        groups_(step.int4() ? k_ / options.group : 0) {}

  // progress(rows): called after each block.
  template <class F>
  Errors run(SafetensorsWriter& writer, F&& progress) {
    const std::int64_t part = std::max<std::int64_t>(1, (1 << 14) / k_), block = 16 * part;
    if (step_.int4()) {
      const std::int64_t shape[2] = {n_, k_};
      writer.write(shape, sizeof shape);
    }
    Errors total;
    for (std::int64_t row = 0; row < n_; row += block) {
      const std::int64_t rows = std::min(block, n_ - row);
      const auto values = static_cast<std::size_t>(rows * k_);
      words_.resize(step_.int4() ? values / 8 : 0);
      plain_.resize(step_.to == QuantizeStep::To::Plain ? values : 0);
      scales_.resize(static_cast<std::size_t>((row + rows) * groups_));
      errors_.assign(static_cast<std::size_t>(rows), {});
      std::atomic<std::int64_t> next{0};
      pool_.run([&](int) {
        for (std::int64_t at; (at = next.fetch_add(part)) < rows;)
          convert(row, at, std::min(part, rows - at));
      });
      writer.write(words_.data(), words_.size() * sizeof words_[0]);
      writer.write(plain_.data(), plain_.size() * sizeof plain_[0]);
      for (const Errors& e : errors_) total.add(e);
      source_.release(row, rows);
      progress(rows);
    }
    if (step_.dtype == DType::F32) {
      writer.write(scales_.data(), scales_.size() * sizeof(float));
    } else {
      std::vector<std::uint16_t> halves(scales_.size());
      std::transform(scales_.begin(), scales_.end(), halves.begin(), float_to_half);
      writer.write(halves.data(), halves.size() * sizeof halves[0]);
    }
    return total;
  }

 private:
  // Rows [block + at, + count) of the matrix, which are rows [at, + count) of the block.
  void convert(std::int64_t block, std::int64_t at, std::int64_t count) {
    const std::int64_t row = block + at;
    if (step_.to == QuantizeStep::To::Copied) return copy(row, at, count);
    const std::vector<float> x = dequantise(source_, row, count);
    if (step_.to == QuantizeStep::To::Plain) {
      const bool f16 = step_.dtype == DType::F16;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const std::uint16_t bits = f16 ? float_to_half(x[i]) : float_to_bf16(x[i]);
        plain_[static_cast<std::size_t>(at * k_) + i] = bits;
        row_errors(at, i).add(x[i], f16 ? half_to_float(bits) : bf16_to_float(bits));
      }
      return;
    }
    std::vector<std::uint8_t> codes(x.size());
    std::vector<std::uint16_t> halves(x.size() / static_cast<std::size_t>(options_.group));
    int4::quantise_rows(options_.method, x.data(), count, k_, options_.group, codes.data(),
                        halves.data(), source_.name(), row);
    int4::pack(codes.data(), count * k_, &words_[static_cast<std::size_t>(at * k_ / 8)]);
    std::transform(halves.begin(), halves.end(), scales_.begin() + row * groups_, half_to_float);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float scale = half_to_float(halves[i / static_cast<std::size_t>(options_.group)]);
      row_errors(at, i).add(x[i], static_cast<double>(codes[i] - 8) * scale);
    }
  }

  void copy(std::int64_t row, std::int64_t at, std::int64_t count) {
    WeightRows r;
    source_.read(row, count, r);
    int4::pack(r.codes.data(), count * k_, &words_[static_cast<std::size_t>(at * k_ / 8)]);
    const std::int64_t repeat = source_.format().group / options_.group;
    for (std::int64_t i = 0; i < count * groups_; ++i)
      scales_[static_cast<std::size_t>(row * groups_ + i)] =
          r.scales[static_cast<std::size_t>(i / repeat)];
    for (std::size_t i = 0; i < r.codes.size(); ++i) {
      const double x =
          (r.codes[i] - 8) *
          static_cast<double>(r.scales[i / static_cast<std::size_t>(source_.format().group)]);
      row_errors(at, i).add(x, x);
    }
  }

  Errors& row_errors(std::int64_t at, std::size_t value) {
    return errors_[static_cast<std::size_t>(at) + value / static_cast<std::size_t>(k_)];
  }

  const WeightSource& source_;
  const QuantizeStep& step_;
  const QuantizeOptions& options_;
  ThreadPool& pool_;
  std::int64_t n_, k_, groups_;
  std::vector<std::uint32_t> words_;  // of the block
  std::vector<std::uint16_t> plain_;  // of the block
  std::vector<float> scales_;         // of the matrix
  std::vector<Errors> errors_;        // by row of the block
};

void write_vector(const Checkpoint& checkpoint, const QuantizeStep& step,
                  SafetensorsWriter& writer) {
  std::int64_t size = 1;
  for (const std::int64_t n : step.info.shape) size *= n;
  const std::vector<float> x = checkpoint.vector(step.info.name, size);
  if (step.dtype == DType::F32) return writer.write(x.data(), x.size() * sizeof(float));
  std::vector<std::uint16_t> bits(x.size());
  std::transform(x.begin(), x.end(), bits.begin(),
                 step.dtype == DType::F16 ? float_to_half : float_to_bf16);
  writer.write(bits.data(), bits.size() * sizeof bits[0]);
}

std::uint64_t bytes_of(const QuantizeStep& s, int group) {
  std::uint64_t n = 0;
  for (const PlannedTensor& t : QuantizePlan{{s}, {}, false}.tensors(group)) n += t.bytes();
  return n;
}

}  // namespace

QuantizeReport quantize(const fs::path& source, const fs::path& given_target,
                        const QuantizeOptions& options) {
  const fs::path target = check_target(given_target);
  if (options.shard_bytes == 0) fail_usage("a shard size of 0 bytes is not possible");
  const auto checkpoint = Checkpoint::open(source, {.keep_16bit = true});
  const QuantizePlan plan = plan_quantize(*checkpoint, options);
  const std::vector<ExportedFile> files = export_files(*checkpoint, source, plan, options);

  NewDirectory directory(target);
  SafetensorsWriter writer(directory.path(), plan.tensors(options.group), options.shard_bytes);
  std::uint64_t needed = writer.total_bytes();
  for (const ExportedFile& f : files) needed += f.text.size();
  check_space(directory.path(), needed);
  for (const ExportedFile& f : files) write_file(directory.path() / f.name, f.text);

  QuantizeReport report;
  report.notices = checkpoint->notices();
  double elements = 0, done = 0;
  for (const QuantizeStep& s : plan.steps)
    if (s.to != QuantizeStep::To::Vector)
      elements += static_cast<double>(s.info.shape[0]) * static_cast<double>(s.info.shape[1]);
  ThreadPool pool(options.threads);
  Errors total;
  for (const QuantizeStep& s : plan.steps) {
    const std::uint64_t bytes = bytes_of(s, options.group);
    report.bytes_from += s.info.bytes;
    report.bytes_to += bytes;
    if (s.to == QuantizeStep::To::Vector) {
      write_vector(*checkpoint, s, writer);
      continue;
    }
    const std::int64_t n = s.info.shape[0], k = s.info.shape[1];
    const auto weight = checkpoint->weight(s.info.name, n, k);
    const Errors e = MatrixRun(*weight, s, options, pool).run(writer, [&](std::int64_t rows) {
      done += static_cast<double>(rows) * static_cast<double>(k);
      if (options.progress) options.progress(done / elements, s.info.name);
    });
    if (s.int4()) total.add(e);
    report.matrices.push_back(
        {s.info.name, s.info.stored_type,
         s.int4() ? fmt::format("int4 g{}", options.group) : std::string(dtype_name(s.dtype)), n, k,
         e.relative(), e.largest, s.info.bytes, bytes});
  }
  writer.finish();
  directory.commit();
  report.relative_rms = total.relative();
  report.max_error = total.largest;
  return report;
}

}  // namespace nibble
