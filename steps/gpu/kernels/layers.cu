// What lies between the convolutions of steps/gpu/layers.py, over maps: halves [pixels, stride], stride channels apart,
// 8 channels (16 bytes) a thread. And steps/gpu/head.py: candidates from the head's last convolutions.

typedef unsigned short Half;
#define EIGHT 8
#define TILE 32
#define MAX_ROWS 1024  // head.MAX_ROWS
#define RANKING 1024   // threads of rank

__device__ inline Half narrow(float value) {
#ifdef __CUDACC__
  Half half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
#else
  return narrow_on_host(value);
#endif
}

union Eight {
  uint4 at_once;
  Half halves[EIGHT];
};

__device__ inline void load(const Half* from, float* values) {
  const Eight eight = *(const Eight*)from;
  for (int channel = 0; channel < EIGHT; ++channel) values[channel] = widen(eight.halves[channel]);
}

__device__ inline void store(Half* to, const float* values) {
  Eight eight;
  for (int channel = 0; channel < EIGHT; ++channel) eight.halves[channel] = narrow(values[channel]);
  *(Eight*)to = eight;
}

// Which 8 channels of which pixel a thread has; false: none.
__device__ inline bool mine(long long pixels, int eights, long long* pixel, int* channel) {
  const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  *pixel = index / eights;
  *channel = (int)(index % eights) * EIGHT;
  return *pixel < pixels;
}

// A block of BLOCK x BLOCK pixels and zeros behind them, as one pixel of a map.
template <int BLOCK>
__device__ inline void gather(const unsigned char* image, int height, int width, int top, int left, Half* out) {
  constexpr int kLine = BLOCK * 3, kChannels = (BLOCK * kLine + EIGHT - 1) / EIGHT * EIGHT;
  float values[kChannels];
#pragma unroll
  for (int channel = 0; channel < kChannels; ++channel) {
    const int y = top + channel / kLine, x = left + channel % kLine / 3;
    const bool inside = channel < BLOCK * kLine && y >= 0 && y < height && x >= 0 && x < width;
    values[channel] = inside ? image[((long long)y * width + x) * 3 + channel % 3] * (1.0f / 255.0f) : 0.0f;
  }
#pragma unroll
  for (int channel = 0; channel < kChannels; channel += EIGHT) store(out + channel, values + channel);
}

// layers.Stem: bytes [batch, height, width, 3] to [batch, rows, columns, block * block * 3 and padding], zeros outside of
// the picture.
extern "C" __global__ void stem(const unsigned char* images, Half* out, int batch, int height, int width, int rows,
                                int columns, int stride, int block, int before) {
  const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (pixel >= (long long)batch * rows * columns) return;
  const int left = ((int)(pixel % columns) - before) * block, top = ((int)(pixel / columns % rows) - before) * block;
  const unsigned char* image = images + pixel / ((long long)columns * rows) * height * width * 3;
  if (block == 1) gather<1>(image, height, width, top, left, out + pixel * stride);
  else gather<2>(image, height, width, top, left, out + pixel * stride);
}

// layers.Sum; and what follows a convolution, where cuDNN does not do it in one: bias, SiLU, the sum with another map.
extern "C" __global__ void sum(const Half* in, int in_stride, const Half* bias, int silu, const Half* other,
                               int other_stride, Half* out, int out_stride, int eights, long long pixels) {
  long long pixel;
  int channel;
  if (!mine(pixels, eights, &pixel, &channel)) return;
  float values[EIGHT], more[EIGHT];
  load(in + pixel * in_stride + channel, values);
  if (bias) {
    load(bias + channel, more);
    for (int index = 0; index < EIGHT; ++index) values[index] += more[index];
  }
  if (silu)
    for (int index = 0; index < EIGHT; ++index) values[index] /= 1.0f + expf(-values[index]);
  if (other) {
    load(other + pixel * other_stride + channel, more);
    for (int index = 0; index < EIGHT; ++index) values[index] += more[index];
  }
  store(out + pixel * out_stride + channel, values);
}

// layers.Pool
extern "C" __global__ void pool(const Half* in, int in_stride, int height, int width, Half* out, int out_stride,
                                int rows, int columns, int size, int step, int padding, int mean, int eights,
                                long long pixels) {
  long long pixel;
  int channel;
  if (!mine(pixels, eights, &pixel, &channel)) return;
  const int left = (int)(pixel % columns) * step - padding, top = (int)(pixel / columns % rows) * step - padding;
  const Half* image = in + pixel / ((long long)columns * rows) * height * width * in_stride + channel;
  float values[EIGHT], more[EIGHT];
  for (int index = 0; index < EIGHT; ++index) values[index] = mean ? 0.0f : -65504.0f;
  for (int y = max(top, 0); y < min(top + size, height); ++y)
    for (int x = max(left, 0); x < min(left + size, width); ++x) {
      load(image + ((long long)y * width + x) * in_stride, more);
      for (int index = 0; index < EIGHT; ++index)
        values[index] = mean ? values[index] + more[index] : fmaxf(values[index], more[index]);
    }
  if (mean)
    for (int index = 0; index < EIGHT; ++index) values[index] /= size * size;
  store(out + pixel * out_stride + channel, values);
}

// layers.Enlarge
extern "C" __global__ void enlarge(const Half* in, int in_stride, int height, int width, Half* out, int out_stride,
                                   int factor, int shuffle, int eights, long long pixels) {
  long long pixel;
  int channel;
  if (!mine(pixels, eights, &pixel, &channel)) return;
  const int columns = width * factor, rows = height * factor;
  const int x = (int)(pixel % columns), y = (int)(pixel / columns % rows);
  const long long image = pixel / ((long long)columns * rows);
  const int part = shuffle ? (y % factor * factor + x % factor) * eights * EIGHT : 0;
  const long long from = (image * height + y / factor) * width + x / factor;
  *(Eight*)(out + pixel * out_stride + channel) = *(const Eight*)(in + from * in_stride + part + channel);
}

// layers.Convolution, depthwise; weight: [size, size, channels].
extern "C" __global__ void depthwise(const Half* in, int in_stride, int height, int width, const Half* weight,
                                     const Half* bias, int silu, const Half* other, int other_stride, Half* out,
                                     int out_stride, int rows, int columns, int high, int wide, int step,
                                     int padding_y, int padding_x, int eights, long long pixels) {
  long long pixel;
  int channel;
  if (!mine(pixels, eights, &pixel, &channel)) return;
  const int left = (int)(pixel % columns) * step - padding_x, top = (int)(pixel / columns % rows) * step - padding_y;
  const Half* image = in + pixel / ((long long)columns * rows) * height * width * in_stride + channel;
  float values[EIGHT], more[EIGHT], factors[EIGHT];
  load(bias + channel, values);
  for (int y = max(top, 0); y < min(top + high, height); ++y)
    for (int x = max(left, 0); x < min(left + wide, width); ++x) {
      load(image + ((long long)y * width + x) * in_stride, more);
      load(weight + ((y - top) * wide + x - left) * eights * EIGHT + channel, factors);
      for (int index = 0; index < EIGHT; ++index) values[index] += more[index] * factors[index];
    }
  if (silu)
    for (int index = 0; index < EIGHT; ++index) values[index] /= 1.0f + expf(-values[index]);
  if (other) {
    load(other + pixel * other_stride + channel, more);
    for (int index = 0; index < EIGHT; ++index) values[index] += more[index];
  }
  store(out + pixel * out_stride + channel, values);
}

// One matrix [rows, columns] of halves for each blockIdx.z to [columns, rows]: maps to ONNX's planes, and back.
// Blocks are TILE x 8 threads.
extern "C" __global__ void transpose(const Half* in, long long in_image, int in_stride, Half* out, long long out_image,
                                     int out_stride, int rows, int columns) {
  __shared__ Half tile[TILE][TILE + 1];
  in += blockIdx.z * in_image;
  out += blockIdx.z * out_image;
  int column = blockIdx.x * TILE + threadIdx.x;
  for (int y = threadIdx.y; y < TILE; y += blockDim.y) {
    const int row = blockIdx.y * TILE + y;
    if (row < rows && column < columns) tile[y][threadIdx.x] = in[(long long)row * in_stride + column];
  }
  __syncthreads();
  const int row = blockIdx.y * TILE + threadIdx.x;
  for (int y = threadIdx.y; y < TILE; y += blockDim.y) {
    column = blockIdx.x * TILE + y;
    if (row < rows && column < columns) out[(long long)column * out_stride + row] = tile[threadIdx.x][y];
  }
}

// A level of head.Head; in steps/gpu/structs.py likewise.
struct Level {
  unsigned long long boxes, classes, coefficients;  // addresses of maps
  int boxes_stride, classes_stride, coefficients_stride;
  int width, points, first;  // points of one image, and the number of the first one
  float step;                // pixels from point to point
  int unused;
};

__device__ inline const Level& level_of(const Level* levels, int point) {
  while (point >= levels->first + levels->points) ++levels;
  return *levels;
}

// The best class of every point; keys fall with the score, and among equal ones with the point: no two are equal.
extern "C" __global__ void scores(const Level* levels, int points, int classes, unsigned long long* keys, int* kinds) {
  const int point = blockIdx.x * blockDim.x + threadIdx.x;
  if (point >= points) return;
  const Level& level = level_of(levels, point);
  const Half* logits =
      (const Half*)level.classes + ((long long)blockIdx.y * level.points + point - level.first) * level.classes_stride;
  float best = widen(logits[0]);
  int kind = 0;
  for (int other = 1; other < classes; ++other) {
    const float logit = widen(logits[other]);
    if (logit > best) best = logit, kind = other;
  }
  union {
    float value;
    unsigned bits;
  } score;
  score.value = 1.0f / (1.0f + expf(-best));
  const long long place = (long long)blockIdx.y * points + point;
  keys[place] = (unsigned long long)score.bits << 32 | (0xffffffffu - (unsigned)point);
  kinds[place] = kind;
}

// The largest keys of each image (blockIdx.x), by falling key. RANKING threads.
extern "C" __global__ void rank(const unsigned long long* keys, int points, int rows, unsigned long long* ranked) {
  __shared__ unsigned long long sorted[MAX_ROWS], prefix;
  __shared__ int counts[256], sixteens[16], wanted, taken;
  keys += (long long)blockIdx.x * points;
  const int thread = threadIdx.x;
  if (thread == 0) prefix = 0, wanted = rows, taken = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {  // byte by byte, what the smallest key that is taken begins with
    if (thread < 256) counts[thread] = 0;
    __syncthreads();
    const unsigned long long begins = prefix;
    for (int point = thread; point < points; point += RANKING)
      if (shift == 56 || keys[point] >> (shift + 8) == begins) atomicAdd(&counts[keys[point] >> shift & 255], 1);
    __syncthreads();
    if (thread < 16) {
      sixteens[thread] = 0;
      for (int digit = 0; digit < 16; ++digit) sixteens[thread] += counts[thread * 16 + digit];
    }
    __syncthreads();
    if (thread == 0) {
      int sixteen = 15;
      while (sixteens[sixteen] < wanted) wanted -= sixteens[sixteen--];
      int digit = sixteen * 16 + 15;
      while (counts[digit] < wanted) wanted -= counts[digit--];
      prefix = begins << 8 | digit;
    }
    __syncthreads();
  }
  int size = 1;
  while (size < rows) size <<= 1;
  for (int row = thread; row < size; row += RANKING) sorted[row] = 0;
  __syncthreads();
  for (int point = thread; point < points; point += RANKING)
    if (keys[point] >= prefix) sorted[atomicAdd(&taken, 1)] = keys[point];
  for (int length = 2; length <= size; length <<= 1)
    for (int apart = length >> 1; apart > 0; apart >>= 1) {
      __syncthreads();
      for (int row = thread; row < size; row += RANKING) {
        const int other = row ^ apart;
        if (other > row && (sorted[row] < sorted[other]) == ((row & length) == 0)) {
          const unsigned long long key = sorted[row];
          sorted[row] = sorted[other];
          sorted[other] = key;
        }
      }
    }
  __syncthreads();
  for (int row = thread; row < rows; row += RANKING) ranked[(long long)blockIdx.x * rows + row] = sorted[row];
}

// Candidates of the images (blockIdx.y), float [rows, 6 + coefficients], as head.Head.every_point.
extern "C" __global__ void decode(const Level* levels, const unsigned long long* ranked, const int* kinds, int points,
                                  int rows, int bins, int coefficients, float* candidates) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const unsigned long long key = ranked[(long long)blockIdx.y * rows + row];
  const int point = (int)(0xffffffffu - (unsigned)key);
  const Level& level = level_of(levels, point);
  const long long place = (long long)blockIdx.y * level.points + point - level.first;
  const Half* box = (const Half*)level.boxes + place * level.boxes_stride;
  float distances[4];
  for (int edge = 0; edge < 4; ++edge, box += bins) {
    if (bins == 1) {
      distances[edge] = widen(*box);
      continue;
    }
    float highest = widen(box[0]), sum = 0.0f, weighted = 0.0f;
    for (int bin = 1; bin < bins; ++bin) highest = fmaxf(highest, widen(box[bin]));
    for (int bin = 0; bin < bins; ++bin) {
      const float weight = expf(widen(box[bin]) - highest);
      sum += weight;
      weighted += weight * bin;
    }
    distances[edge] = weighted / sum;
  }
  const int cell = point - level.first;
  const float x = cell % level.width + 0.5f, y = cell / level.width + 0.5f;
  float* out = candidates + ((long long)blockIdx.y * rows + row) * (6 + coefficients);
  union {
    unsigned bits;
    float value;
  } score;
  score.bits = (unsigned)(key >> 32);
  out[0] = score.value;
  out[1] = (x + (distances[2] - distances[0]) / 2.0f) * level.step;
  out[2] = (y + (distances[3] - distances[1]) / 2.0f) * level.step;
  out[3] = (distances[0] + distances[2]) * level.step;
  out[4] = (distances[1] + distances[3]) * level.step;
  out[5] = (float)kinds[(long long)blockIdx.y * points + point];
  const Half* from = (const Half*)level.coefficients + place * level.coefficients_stride;
  for (int index = 0; index < coefficients; ++index) out[6 + index] = widen(from[index]);
}
