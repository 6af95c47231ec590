// pipeline.masks.mask_runs of the instances of a batch: logits at the prototype cells of each box, or of what a ready
// mask reaches, and the pixels at which runs begin and end (edges) down the columns of the image; and pipeline.rle.encode_all of them.
// Blocks take one instance after the other. Compiled without fused multiply-add, see suppress.cu.

#define FIRST_COEFFICIENT 6
#define MOST_COEFFICIENTS 256

// The logits of one box, [rows, cells], and where its pixel columns lie in them.
struct Plane {
  const float* logits;
  int rows, cells;
  const Span& x;
  const Span& y;
  float step_x, offset_x;
  double step_y;

  __device__ Plane(const float* logits, const Instance& instance, const Image& image)
      : logits(logits), rows(instance.y.high - instance.y.low), cells(instance.x.high - instance.x.low), x(instance.x),
        y(instance.y), step_x((float)image.step_x), offset_x((float)instance.x.offset), step_y(image.step_y) {}

  __device__ int crossing(int above, float upper, float lower, bool begins) const {  // masks._crossings
    const double place = (above + (double)(upper / (upper - lower)) - y.offset) / step_y;
    const double pixel = begins ? floor(place) + 1.0 : ceil(place);
    return (int)fmin(fmax(pixel, 0.0), (double)y.count);
  }

  // Runs of a pixel column, those that touch joined: calls emit(number, start, end); returns how many.
  template <class Emit>
  __device__ int runs(int column, Emit emit) const {
    const float position = fminf(fmaxf(column * step_x + offset_x, 0.0f), cells - 1.0f);
    const int cell = min((int)position, max(cells - 2, 0)), neighbor = min(cell + 1, cells - 1);
    const float fraction = position - cell;
    int count = 0, start = 0, last_start = 0, last_end = -1;
    bool inside = false;
    float before = 0.0f;
    for (int row = 0; row <= rows; ++row) {
      float value = -1.0f;
      bool set = false;
      if (row < rows) {
        const float left = logits[row * cells + cell], right = logits[row * cells + neighbor];
        value = left + fraction * (right - left);
        set = (left > 0.0f) == (right > 0.0f) ? left > 0.0f : value > 0.0f;
      }
      if (set != inside) {
        const int pixel = row == 0 ? 0 : row == rows ? y.count : crossing(row - 1, before, value, set);
        if (set) {
          start = pixel;
        } else if (pixel > start) {
          if (start != last_end) {
            if (last_end >= 0) emit(count++, last_start, last_end);
            last_start = start;
          }
          last_end = pixel;
        }
        inside = set;
      }
      before = value;
    }
    if (last_end >= 0) emit(count++, last_start, last_end);
    return count;
  }
};

struct Column {
  int runs;
  bool at_head, at_foot;  // the first run begins at the box's first row; the last one ends behind its last row
};

__device__ inline Column look(const Plane& plane, int column) {
  Column seen = {0, false, false};
  const int foot = plane.y.count;
  seen.runs = plane.runs(column, [&](int number, int start, int end) {
    if (number == 0) seen.at_head = start == 0;
    seen.at_foot = end == foot;
  });
  return seen;
}

// Edges of a column; where the box is as high as the image, runs go on from a column's foot to the next one's head.
struct Edges {
  int count;
  bool joined_before, joined_behind;

  __device__ Edges() : count(0), joined_before(false), joined_behind(false) {}
  __device__ Edges(const Plane& plane, int column, bool whole_height) : count(0), joined_before(false), joined_behind(false) {
    const Column own = look(plane, column);
    if (whole_height) {
      joined_before = own.at_head && column > 0 && look(plane, column - 1).at_foot;
      joined_behind = own.at_foot && column + 1 < plane.x.count && look(plane, column + 1).at_head;
    }
    count = 2 * own.runs - joined_before - joined_behind;
  }
};

// The numbers that COCO's text holds, see pipeline.rle: run lengths over the whole image, from the fourth on as the
// difference from the one before the last.
struct Counts {
  const int* edges;
  int count, pixels;

  __device__ int numbers() const { return count + 1 - (count && edges[count - 1] == pixels); }

  __device__ int length(int place) const {
    return (place < count ? edges[place] : pixels) - (place ? edges[place - 1] : 0);
  }

  // Characters of a number, written to `out` unless it is null.
  __device__ int text(int place, unsigned char* out) const {
    int rest = length(place) - (place > 2 ? length(place - 2) : 0), size = 0;
    bool more = true;
    while (more) {
      const int group = rest & 31;
      rest >>= 5;
      more = rest != (group & 16 ? -1 : 0);
      if (out) out[size] = 48 + group + (more ? 32 : 0);
      ++size;
    }
    return size;
  }
};

// Adds to a pool's fill level; the place of the block's part, the same in all threads.
__device__ inline int take(int* level, int size) {
  __shared__ int place;
  __syncthreads();
  if (threadIdx.x == 0) place = atomicAdd(level, size);
  __syncthreads();
  return place;
}

// pipeline.masks.mask_boxes: the pixels that a ready mask reaches, and their prototype cells. For a whole block.
__device__ inline void reach(const unsigned short* mask, int cells_high, int cells_wide, const Image& image,
                             Instance& instance) {
  __shared__ int left, top, right, bottom;  // of the cells above 0; the last two behind them
  if (threadIdx.x == 0) {
    left = cells_wide;
    top = cells_high;
    right = bottom = 0;
  }
  __syncthreads();
  for (int place = threadIdx.x; place < cells_high * cells_wide; place += THREADS) {
    if (!(widen(mask[place]) > 0.0f)) continue;
    atomicMin(&left, place % cells_wide);
    atomicMin(&top, place / cells_wide);
    atomicMax(&right, place % cells_wide + 1);
    atomicMax(&bottom, place / cells_wide + 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    // An interpolated value is above 0 only between a cell that is, and its neighbors.
    const float margin = right ? 0.5f : 0.0f;
    if (!right) left = top = 0;
    instance.x = span_of(to_image((left - margin) * STRIDE, image.left, image.scale_x, image.width),
                         to_image((right + margin) * STRIDE, image.left, image.scale_x, image.width), image.width,
                         image.step_x, image.pad_x, cells_wide);
    instance.y = span_of(to_image((top - margin) * STRIDE, image.top, image.scale_y, image.height),
                         to_image((bottom + margin) * STRIDE, image.top, image.scale_y, image.height), image.height,
                         image.step_y, image.pad_y, cells_high);
  }
  __syncthreads();
}

// candidates: [images, count, columns]; prototypes: half [images, planes, cells_high, cells_wide], one per coefficient,
// or ready masks, whose number is the only coefficient; scratch: float [blocks, cells_high * cells_wide]. Of the
// instances those from `begin` up to `end`, or all if `end` is negative.
extern "C" __global__ void masks(const Image* images, Instance* instances, int begin, int end, Totals* totals,
                                 const float* candidates, int count, int columns, const unsigned short* prototypes,
                                 int planes, int cells_high, int cells_wide, float* scratch, int* edge_pool, int edge_capacity,
                                 unsigned char* byte_pool, int byte_capacity) {
  __shared__ float coefficients[MOST_COEFFICIENTS];
  const int thread = threadIdx.x, coefficient_count = columns - FIRST_COEFFICIENT, area = cells_high * cells_wide;
  float* logits = scratch + (size_t)blockIdx.x * area;
  if (end < 0) end = totals->instances;
  for (int index = begin + blockIdx.x; index < end; index += gridDim.x) {
    Instance& instance = instances[index];
    const Image& image = images[instance.image];
    if (!image.masks) continue;
    const float* candidate = candidates + ((size_t)instance.image * count + instance.row) * columns;
    __syncthreads();  // the last instance is done
    for (int place = thread; place < coefficient_count; place += THREADS)
      coefficients[place] = candidate[FIRST_COEFFICIENT + place];
    __syncthreads();
    const unsigned short* first_plane = prototypes + (size_t)instance.image * planes * area;
    const bool is_ready = coefficient_count == 1 && planes > 1;
    const int number = is_ready ? min(max((int)coefficients[0], 0), planes - 1) : 0;  // whatever the network gives
    const unsigned short* mask = first_plane + (size_t)number * area;
    if (is_ready) reach(mask, cells_high, cells_wide, image, instance);
    const Plane plane(logits, instance, image);
    for (int place = thread; place < plane.rows * plane.cells; place += THREADS) {
      const int row = instance.y.low + place / plane.cells, cell = instance.x.low + place % plane.cells;
      float sum = is_ready ? widen(mask[row * cells_wide + cell]) : 0.0f;
      for (int channel = 0; channel < coefficient_count && !is_ready; ++channel)
        sum = fmaf(coefficients[channel], widen(first_plane[(size_t)channel * area + row * cells_wide + cell]), sum);
      logits[place] = sum;
    }
    __syncthreads();
    const bool whole_height = instance.y.count == image.height;
    int mine = 0, total;
    for (int column = thread; column < instance.x.count; column += THREADS) mine += Edges(plane, column, whole_height).count;
    block_sum(mine, &total);
    const int first = take(&totals->edges, total);
    const bool fits = total <= edge_capacity - first && first >= 0;
    if (thread == 0) {
      instance.first_edge = first;
      instance.edges = fits ? total : -1;
    }
    if (!fits) continue;
    int* edges = edge_pool + first;
    int filled = 0;
    for (int chunk = 0; chunk < instance.x.count; chunk += THREADS) {
      const int column = chunk + thread;
      const bool there = column < instance.x.count;
      const Edges own = there ? Edges(plane, column, whole_height) : Edges();
      int place = filled + block_sum(own.count, &total);
      filled += total;
      if (!own.count) continue;
      const int origin = (instance.x.first + column) * image.height + instance.y.first;
      const int behind = place + own.count;
      plane.runs(column, [&](int number, int start, int stop) {
        if (number || !own.joined_before) edges[place++] = origin + start;
        if (place < behind) edges[place++] = origin + stop;  // else the last run goes on in the next column
      });
    }
    __syncthreads();
    if (image.masks < 2) continue;
    const Counts counts = {edges, filled, image.height * image.width};
    const int numbers = counts.numbers(), share = (numbers + THREADS - 1) / THREADS;
    const int from = min(thread * share, numbers), to = min(from + share, numbers);
    mine = 0;
    for (int place = from; place < to; ++place) mine += counts.text(place, nullptr);
    int place = block_sum(mine, &total);
    const int first_byte = take(&totals->bytes, total);
    if (thread == 0) {
      instance.first_byte = first_byte;
      instance.bytes = total;
    }
    if (total > byte_capacity - first_byte || first_byte < 0) continue;
    unsigned char* text = byte_pool + first_byte;
    for (int number = from; number < to; ++number) place += counts.text(number, text + place);
  }
}

// Copies the answer, and only that, to the host's memory: 16 bytes a thread and turn. Sources and targets are aligned
// to 16 bytes, and as large as the capacities say, rounded up to 16.
__device__ inline void copy(void* target, const void* source, size_t bytes) {
  const size_t words = (bytes + 15) / 16;
  for (size_t word = blockIdx.x * (size_t)blockDim.x + threadIdx.x; word < words; word += (size_t)gridDim.x * blockDim.x)
    ((uint4*)target)[word] = ((const uint4*)source)[word];
}

extern "C" __global__ void deliver(const Totals* totals, const Found* found, int images, const Instance* instances,
                                   const int* edge_pool, int edge_capacity, const unsigned char* byte_pool,
                                   int byte_capacity, Totals* host_totals, Found* host_found, Instance* host_instances,
                                   int* host_edges, unsigned char* host_bytes) {
  copy(host_totals, totals, sizeof(Totals));
  copy(host_found, found, images * sizeof(Found));
  copy(host_instances, instances, totals->instances * sizeof(Instance));
  if (host_edges) copy(host_edges, edge_pool, (size_t)min(totals->edges, edge_capacity) * sizeof(int));
  copy(host_bytes, byte_pool, min(totals->bytes, byte_capacity));
}
