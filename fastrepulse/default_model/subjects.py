"""The subjects that the shipped model draws, their attributes, and the usual values."""

from fastrepulse.default_model.captions import Attribute, Subject
from fastrepulse.default_model.palettes import BRIGHT, background, eyes, top, words

IMAGE_SIZE = 64

PLANET = Subject(
    "planet",
    "planets",
    "planet",
    (
        Attribute(
            "surface",
            "surfaceVariant",
            words("striped: banded belted; cratered: cratered; cracked: cracked; patchy: terra"),
            "striped",
        ),
        Attribute(
            "colour",
            "planetColor",
            words(
                "pink: e27a8c d67cb2; orange: e37f64 d88a40; golden: c1982a 9fa63b; "
                "green: 74b160 39b789; turquoise: 00b6af 00b1cf; blue: 47a7e7 7a9bef; "
                "purple: a18ee8 c083d2"
            ),
            "orange",
        ),
        Attribute(
            "ring",
            "ringVariant",
            words("a thin ring: thin; a double ring: double; a wide ring: bold"),
            "none",
            "with {}",
            absent="without a ring",
        ),
    ),
)

LANDSCAPE = Subject(
    "landscape",
    "landscape",
    "landscape",
    (
        Attribute(
            "hills",
            "hill4Color",
            words("green: 2c5837 445423; brown: 5c531c 684821 6a3c2c 673d3d; blue: 30506f 05585f"),
            "green",
            "with {} hills",
        ),
        Attribute(
            "sun",
            "orbVariant",
            words("a sun: sun; a hollow sun: ring; a glowing sun: glow"),
            "a sun",
            "with {}",
            absent="with no sun",
        ),
        Attribute(
            "sky",
            "backgroundColor",
            words(
                "blue: e1f3ff d5f3ff d6f8fb daecff; yellow: faf0d2 ffebd5; pink: ffe7dd ffe4e1; "
                "lavender: f0e9ff"
            ),
            "blue",
            "under a {} sky",
        ),
    ),
)

PLANT = Subject(
    "plant",
    "sprouts",
    "potted plant",
    (
        Attribute(
            "kind",
            "plantVariant",
            words(
                "seedling: sprout seedling; cactus: cactus ball; succulent: succulent grass; "
                "bush: bush; flower: flower; tulip: tulip; palm: palm"
            ),
            "cactus",
            "= {}",
        ),
        Attribute("pot colour", "potColor", BRIGHT, "orange", "in a {} pot"),
        Attribute(
            "pot shape",
            "potVariant",
            words("round: round; curved: bowl; rimmed: rim; tapered: taper tub"),
            "tapered",
            "with {} sides",
        ),
        background("purple"),
    ),
)

MONSTER = Subject(
    "monster",
    "critters",
    "monster",
    (
        Attribute(
            "build",
            "bodyVariant",
            words("thin: tower chimney tilt lean; wide: squat round blob bell"),
            "wide",
        ),
        Attribute("colour", "bodyColor", BRIGHT, "lime"),
        eyes(
            "one eye: mono monoSleepy; three eyes: trio threeRow; four eyes: four; "
            "two eyes: round dots bigPupils sideeye inward uneven happy closedLine wink squint "
            "wide sleepy angry close"
        ),
        top(
            "horns: horns hornsIn hornsSmall; ears: earsRound earsPointy earsDroop; "
            "antennae: antenna antennae; spikes: spike spikes",
            "horns",
        ),
        background("blue"),
    ),
)

ROBOT = Subject(
    "robot",
    "voxel-bot",
    "robot",
    (
        Attribute(
            "colour",
            "bodyColor",
            words(
                "white: e9ecef; grey: aeb8c2; blue: 74c0fc; mint: 63e6be; yellow: ffd43b; "
                "pink: ff9d9d; purple: b6a6f5; green: 69db7c"
            ),
            "grey",
        ),
        top(
            "an antenna: antenna; two antennae: twin; a dish: dish; a fin: fin; a siren: siren",
            "an antenna",
        ),
        background(
            "blue",
            words("blue: b6e3f4; purple: c0aede; lavender: d1d4f9; pink: ffd5dc; peach: ffdfbf"),
        ),
    ),
)

FACE = Subject(
    "face",
    "moods",
    "face",
    (
        Attribute(
            "mood",
            "mouthVariant",
            words(
                "smiling: smile wide; laughing: bigSmile smileOpen laugh; sad: frown; "
                "surprised: open gasp"
            ),
            "smiling",
        ),
        Attribute(
            "shape",
            "faceVariant",
            words("round: circle hexagon; square: squircle softSquare; wide: wide; tall: tall"),
            "round",
        ),
        Attribute("colour", "faceColor", BRIGHT, "yellow"),
        Attribute(
            "eyes",
            "eyesVariant",
            words(
                "open: pupils bigPupils sparkle small uneven tallPupils lookSide lookDown lookUp; "
                "winking: wink; angry: angry; sleepy: sleepy calm; squinting: squint"
            ),
            "open",
            "with {} eyes",
        ),
        background("red"),
    ),
)

CLAY = Subject(
    "clay",
    "clay",
    "clay creature",
    (
        Attribute(
            "build",
            "bodyVariant",
            words("thin: column stack lean; wide: loaf squat slug boulder"),
            "wide",
        ),
        Attribute(
            "colour",
            "bodyColor",
            words(
                "orange: c4795c d99277; yellow: e0bd6a cf9f52; green: a8b37e 8ba06b; "
                "turquoise: 83b0a4; blue: 86a5c3; purple: 9793bd ab8bbd; pink: cd8ea6; grey: b3a696"
            ),
            "green",
        ),
        eyes(
            "one eye: mono; three eyes: trio; "
            "two eyes: googly even big tiny side outward inward dots happy wink down up "
            "pinprick"
        ),
        top(
            "horns: horns hornsSmall; ears: ears; antennae: antenna; spikes: spikes; "
            "a loop: loop; a curl: curl; a peak: peak",
            "ears",
        ),
    ),
)

STONES = Subject(
    "stones",
    "stack",
    "pile of stones",
    (
        Attribute(
            "height",
            "pilesVariant",
            words("low: pair boulder; tall: five tower four fourLean fourBelly"),
            "tall",
        ),
        Attribute(
            "top",
            "capVariant",
            words("a ball: ball; an egg: egg; a dome: dome; a cube: cube; a drop: drop"),
            "a ball",
            "topped by {}",
        ),
        Attribute(
            "upper stones",
            "stoneMidColor",
            words(
                "red: c7877c; brown: b29472 9c9e72; green: 78a68d 78a2aa; blue: 829bc3; "
                "purple: a18fc4; pink: c87db0"
            ),
            "blue",
            "with {} stones",
        ),
        Attribute(
            "lower stones",
            "stoneDeepColor",
            words(
                "red: 7c483f; brown: 675440 595a40; green: 445f50 435d62; blue: 3f5882; "
                "purple: 614a86; pink: 764566"
            ),
            "purple",
            "over {} stones",
        ),
    ),
)

SUBJECTS = (PLANET, LANDSCAPE, PLANT, MONSTER, ROBOT, FACE, CLAY, STONES)
