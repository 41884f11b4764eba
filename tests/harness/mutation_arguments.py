"""Why mutants of `mutations` may survive: a pattern of their keys, and the argument.

A survivor that no pattern matches is one that a test should catch, or whose term is not needed.
"""

SCALED = (
    "Matrices are scaled to entries about 1 before they come here, so that what underflows is below "
    "2^-900 of the norm in float64 and 2^-80 in float32: no input shows it. The term stands since "
    "the statement is about any stored matrix."
)
ONE_NUDGE = (
    "One nudge restores 16 units and covers one to four roundings, and the next one outward covers "
    "them as well: in the worst arithmetic that is allowed bounds of every route have more than 16 "
    "units to spare (test_bounds_have_to_spare_what_one_nudge_gives). All nudges of a formula "
    "together are needed (test_formulas_that_are_not_nudged_are_found, and `up` and `down` halved)."
)
RESIDUAL = (
    "It is part of the residual alone, which enters the bound squared and over the gap of two "
    "eigenvalues: a change of the order of u changes the bound by its square, below a unit, unless "
    "the gap is as small, and then the residual that is measured exceeds it."
)
CHOICE = "It decides what is tried next and is part of no bound."

SECOND = (
    "Of second order: a factor 1 + c u of a constant that is itself a few u. Sums of n terms are "
    "counted with gamma_n, of which the worst order attains n - 1 roundings: more is to spare."
)
TWICE = (
    "The sums of this quotient are counted with Lemma 3, (2 (m + n) + 14) u each and both ends of "
    "the ratio, where the worst order of summation attains (m + n) u: more is to spare than the "
    "term, which for its own is at most 4 (q + 4) u."
)
NARROW = (
    "A unit of double precision beside products in single precision: 2^-29 of the term beside it."
)
PHASES = (
    "Phases are right within 20 u where 4 u are attained (probed in each process), and real taps "
    "attain n u of the 3.2 (n + 4) u that is counted for complex products."
)
FEW = (
    "A few u of a quotient or a root, beside the loss of a sum of squares of all entries, which the "
    "worst order attains by half: bounds stay above without it in the worst arithmetic "
    "(test_no_arithmetic_of_the_model_ends_below)."
)
MOMENTS = (
    "The bound is moved by 1 % of its distance from the mean beyond the fixed point, to which "
    "Newton's steps come from above: more than roundings of the centred sums change, also where "
    "nothing but them is left (test_the_moment_bound_holds_when_its_sums_err_by_all_they_may)."
)
SIXTEEN = (
    "A product that is rounded up takes three roundings, and 16 are counted; that it needs some is "
    "seen (test_fixed_steps_of_a_chain_count_the_rounding_of_entries_and_products)."
)
SPREAD = (
    "What two transforms lose is counted once for each lag, where the worst sums of a row attain "
    "the root of their number: rescaled rows have tens of units to spare in the worst arithmetic "
    "(test_bounds_have_to_spare_what_one_nudge_gives)."
)
SHORT = (
    "A subnormal number of float16 loses 2^-24, beside the 2^-11 of its other roundings; in other "
    "types it is next to nothing."
)
TOGETHER = (
    "Both are for products that underflow, which lose a fraction of either; that one of them is "
    "needed is seen (test_an_energy_behind_a_matrix_counts_what_underflows)."
)
LOST = r"(underflow\(|\.tiny`|off `lost`)"
SUMS = r"^_rigour/sums\.py "
PROOFS = (
    r"^_matrix/(certificate|gram|residual|cholesky|margin|definite|windows|single|moments)\.py "
)

ARGUMENTS: tuple[tuple[str, str], ...] = (
    (r"^(_matrix|_conv|classical)/\w+\.py .*: off `(up|down)\(", ONE_NUDGE),
    (SUMS + r".*: off `(up|down)\(", ONE_NUDGE),
    (r"^(_rescaling\.py|network/\w+\.py) .*: off `(up|down)\(", ONE_NUDGE),
    (PROOFS + r".*" + LOST, SCALED),
    (SUMS + r"(enclosure|one_square|image_quotient): off `(lost|prec\.(tiny|underflow))", SCALED),
    (r"^_conv/\w+\.py .*" + LOST, SCALED),
    (r"^_matrix/residual\.py quotient: off `prec\.(kappa\(p\)|unit)`", RESIDUAL),
    (r"^_matrix/definite\.py expected_loss", CHOICE),
    (r"^_conv/(factored\.py _heights|wide\.py _Search\._settle): off `excess`", CHOICE),
    (r"^network/_program\.py .*: off `excess`", CHOICE),
    (r"^network/_energies\.py _pulled_back: off `_PRECISION\.(underflow|tiny)", TOGETHER),
    (
        r"^_rescaling\.py _relative_error(\.stages)?: off `(HOST_UNIT|prec\.kappa\(n\)|prec\.unit`$)",
        SPREAD,
    ),
    (r"^_rescaling\.py (_relative_error: off `prec\.gamma|_shrinkage: off `unit`$)", SECOND),
    (r"^_rescaling\.py row_scales: off `prec\.gamma", SPREAD),
    (r"^_rescaling\.py row_scales: off `prec\.unit`", FEW),
    (r"^torch\.py SpectralBound\._divisor: off `(unit`$|precision\.gamma)", SECOND),
    (
        r"^torch\.py SpectralBound\._divisor: off `precision\.(tiny`|unit`$)",
        "It is part of a condition: without it more is counted, or a bound so small is refused later.",
    ),
    (r"^_rescaling\.py _shrinkage: off `lost`", SHORT),
    (r"^network/_interior\.py path: off `unit`", CHOICE),
    (r"^network/_fixed_steps\.py module: halved `16`", SIXTEEN),
    (r"^network/_energies\.py _at_the_input.*" + LOST, SCALED),
    (r"^network/_sequence\.py _rounding: off `lost`$", SCALED),
    (r"^network/_unrolled\.py _of_sums: off `HOST_UNIT` #1", SECOND),
    (r"^_matrix/choose\.py _bracket_unscaled: off `dtypes", SCALED),
    (r"^_matrix/definite\.py (_above|_quotients): off `2\.0", SCALED),
    (
        r"^_matrix/(fixed_steps\.py (norm_bound|gram_values)|summed\.py|sparse\.py) ?.*" + LOST,
        SCALED,
    ),
    (r"^_matrix/non_negative\.py attained.*" + LOST, SCALED),
    (r"^_matrix/non_negative\.py NonNegative\.above: off `HOST_UNIT`( #2)?$", SECOND),
    (r"^_conv/flat\.py autocorrelation: off `prec\.kappa\(p\)` #1", SECOND),
    (r"^_matrix/fixed_steps\.py gram_values: off `prec\.gamma", SECOND),
    (r"^_matrix/fixed_steps\.py (gram_values|frobenius_above): off `prec\.unit", FEW),
    (r"^_conv/squared\.py Squared\.\w+: off `PHASE_ERROR`", PHASES),
    (r"^_matrix/residual\.py hermitian_quotient: off `(sums|prec)", TWICE),
    (r"^_matrix/residual\.py single_quotient: off `(double|sums\.loss)", NARROW),
    (r"^_matrix/residual\.py single_quotient: off `prec\.unit`", RESIDUAL),
    (r"^_matrix/moments\.py upper_bound: off `(precision|sums)", MOMENTS),
    (
        r"^_conv/symbol\.py Symbol\._evaluation_error: off `prec\.gamma",
        "It is a factor of the error itself: of second order, and less than the nudge that follows.",
    ),
    (r"^_matrix/gram\.py GramChain\._climb: off `2\.0\*\*-48`", CHOICE),
    (
        r"^_conv/every_size\.py _if_flat: off `np\.nextafter",
        "Lemma 11 holds for every centre: the step down makes the bound an equality more often.",
    ),
    (
        r"^_arrays/linalg\.py eigenpairs: off `unit`",
        "The name is that of a matrix of unit vectors, which prove nothing.",
    ),
    (
        r"^_arrays/probes\.py flushes_subnormals: off `tiny`",
        "The answer is then always yes, which widens bounds.",
    ),
)
