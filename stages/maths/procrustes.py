"""The best rotation from one hidden space to another."""

from stages.maths.affine import Affine
from stages.maths.moments import Moments
from stages.maths.polar import polar_factor


def orthogonal(moments: Moments, centred: bool = False, scaled: bool = False) -> Affine:
    """The orthogonal R that minimises ‖X R - Y‖, from XᵀY alone: source rows times R are target rows.

    R = U Vᵀ for XᵀY = U S Vᵀ (Schönemann 1966, doi:10.1007/BF02289451). `centred` fits deviations from the means and
    adds an intercept, `scaled` multiplies R by tr S / tr XᵀX, the best factor. R is not unique where XᵀY lacks
    rank, so fewer rows than the lesser width leave part of the space to chance.

    At unequal widths R is semi-orthogonal. From a narrower space it keeps lengths and angles and minimises ‖X R - Y‖;
    into a narrower one it drops directions, and maximises tr RᵀXᵀY, which is to minimise ‖X R - Y‖ only where XᵀX
    is a multiple of the identity: that minimum has no closed form.
    """
    cross = moments.cross(centred)
    weight = polar_factor(cross)
    if scaled:
        weight *= (weight * cross).sum() / moments.gram(centred).trace()
    if not centred:
        return Affine(weight, weight.new_zeros(weight.shape[1]))
    x_mean, y_mean = moments.means
    return Affine(weight, y_mean - x_mean @ weight)
