// sequence_sum: lengths around the block's size, empty sequences, weights, rows left out, rows of no sequence.
#include "check.h"

namespace test {

void sequence_sum() {
    const int lengths[] = {0, 1, 31, 32, 33, 255, 256, 257, 0, 1000};
    const int sequences = 10, lead = 2, tail = 3;
    std::vector<int> starts{lead};
    for (int length : lengths) starts.push_back(starts.back() + length);
    const int rows = starts.back() + tail;
    Guarded<int> offsets(sequences + 1), targets(rows), counts(sequences);
    Guarded<float> logps(rows), weights(rows), sums(sequences), dsums(sequences), dlogps(rows);
    Random random(3);
    for (int s = 0; s <= sequences; s++) offsets[s] = starts[s];
    for (int s = 0; s < sequences; s++) dsums[s] = float(random.normal());
    for (int r = 0; r < rows; r++) {
        logps[r] = float(-10 * random.uniform());
        weights[r] = float(random.uniform());
        targets[r] = random.below(3) ? random.below(100) : COLLIMATE_IGNORE;
    }
    for (int variant = 0; variant < 4; variant++) {
        const float *w = variant & 1 ? weights.data() : nullptr;
        const int *t = variant & 2 ? targets.data() : nullptr;
        in_all_orders("sequence_sum", [&] {
            sums.fill(-7);
            counts.fill(-7);
            dlogps.fill(-7);
            int status = collimate_sequence_sum_forward(sums.data(), counts.data(), logps.data(), w, t, offsets.data(),
                                                        sequences, stream);
            status |= collimate_sequence_sum_backward(dlogps.data(), dsums.data(), w, t, offsets.data(), sequences, stream);
            expect(status == 0, "sequence_sum returned %d", status);
            std::string bytes;
            sums.append_to(bytes);
            counts.append_to(bytes);
            dlogps.append_to(bytes);
            return bytes;
        });
        for (int s = 0; s < sequences; s++) {
            double sum = 0, size = 0;
            int count = 0;
            for (int r = starts[s]; r < starts[s + 1]; r++) {
                const bool scored = !t || t[r] != COLLIMATE_IGNORE;
                const double weight = w ? w[r] : 1;
                if (scored) sum += weight * logps[r], size += std::fabs(weight * logps[r]), count++;
                expect(dlogps[r] == (scored ? float(weight) * dsums[s] : 0.0f), "row %d: dlogp %g", r, dlogps[r]);
            }
            expect(std::fabs(sums[s] - sum) <= 1e-6 * size, "sequence %d: sum %.9g, exact %.9g", s, sums[s], sum);
            expect(counts[s] == count, "sequence %d: count %d, exact %d", s, counts[s], count);
            float alone = 0;  // the same sequence with no other around it
            collimate_sequence_sum_forward(&alone, nullptr, logps.data(), w, t, offsets.data() + s, 1, nullptr);
            expect(alone == sums[s], "sequence %d alone has other bits", s);
        }
        for (int r = 0; r < lead; r++) expect(dlogps[r] == -7, "wrote row %d of no sequence", r);
        for (int r = rows - tail; r < rows; r++) expect(dlogps[r] == -7, "wrote row %d of no sequence", r);
    }
    expect(sums.intact() && counts.intact() && dlogps.intact(), "sequence_sum wrote outside");
    expect(collimate_sequence_sum_forward(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, nullptr) == 0, "no sequences");
    expect(collimate_sequence_sum_forward(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, -1, nullptr) ==
               COLLIMATE_STATUS_ARGUMENT,
           "-1 sequences");
}

}  // namespace test
