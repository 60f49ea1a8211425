"""What the default model can draw: eight subjects, their attributes, and which value is usual."""

from fastrepulse.default_model.captions import Attribute, Subject
from fastrepulse.default_model.palettes import BRIGHT, CLAY_PAIRS, MONSTER_PAIRS, background, words

IMAGE_SIZE = 64


PLANET = Subject(
    "planet",
    "planets",
    "planet",
    (
        Attribute(
            "surface",
            "surfaceVariant",
            words(striped="banded belted", cratered="cratered", cracked="cracked", patchy="terra"),
            "striped",
        ),
        Attribute(
            "colour",
            "planetColor",
            words(
                pink="e27a8c d67cb2",
                orange="e37f64 d88a40",
                golden="c1982a 9fa63b",
                green="74b160 39b789",
                turquoise="00b6af 00b1cf",
                blue="47a7e7 7a9bef",
                purple="a18ee8 c083d2",
            ),
            "orange",
        ),
        Attribute(
            "ring",
            "ringVariant",
            {"thin": "a thin ring", "double": "a double ring", "bold": "a wide ring"},
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
            words(
                green="2c5837 445423",
                brown="5c531c 684821 6a3c2c 673d3d",
                blue="30506f 05585f",
            ),
            "green",
            "with {} hills",
        ),
        Attribute(
            "sun",
            "orbVariant",
            {"sun": "a sun", "ring": "a hollow sun", "glow": "a glowing sun"},
            "a sun",
            "with {}",
            absent="with no sun",
        ),
        Attribute(
            "sky",
            "backgroundColor",
            words(
                blue="e1f3ff d5f3ff d6f8fb daecff",
                yellow="faf0d2 ffebd5",
                pink="ffe7dd ffe4e1",
                lavender="f0e9ff",
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
                seedling="sprout seedling",
                cactus="cactus ball",
                succulent="succulent grass",
                bush="bush",
                flower="flower",
                tulip="tulip",
                palm="palm",
            ),
            "cactus",
            "= {}",
        ),
        Attribute("pot colour", "potColor", BRIGHT, "orange", "in a {} pot"),
        Attribute(
            "pot shape",
            "potVariant",
            words(round="round", curved="bowl", rimmed="rim", tapered="taper tub"),
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
            words(thin="tower chimney tilt lean", wide="squat round blob bell"),
            "wide",
        ),
        Attribute("colour", "bodyColor", BRIGHT, "lime"),
        Attribute(
            "eyes",
            "eyesVariant",
            {
                **dict.fromkeys(("mono", "monoSleepy"), "one eye"),
                **dict.fromkeys(("trio", "threeRow"), "three eyes"),
                "four": "four eyes",
                **dict.fromkeys(MONSTER_PAIRS, "two eyes"),
            },
            "two eyes",
            "with {}",
        ),
        Attribute(
            "top",
            "topVariant",
            words(
                horns="horns hornsIn hornsSmall",
                ears="earsRound earsPointy earsDroop",
                antennae="antenna antennae",
                spikes="spike spikes",
            ),
            "horns",
            "with {}",
            absent="with a bare head",
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
                white="e9ecef",
                grey="aeb8c2",
                blue="74c0fc",
                mint="63e6be",
                yellow="ffd43b",
                pink="ff9d9d",
                purple="b6a6f5",
                green="69db7c",
            ),
            "grey",
        ),
        Attribute(
            "top",
            "topVariant",
            {
                "antenna": "an antenna",
                "twin": "two antennae",
                "dish": "a dish",
                "fin": "a fin",
                "siren": "a siren",
            },
            "an antenna",
            "with {}",
            absent="with a bare head",
        ),
        Attribute(
            "background",
            "backgroundColor",
            words(blue="b6e3f4", purple="c0aede", lavender="d1d4f9", pink="ffd5dc", peach="ffdfbf"),
            "blue",
            "on a {} background",
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
                smiling="smile wide",
                laughing="bigSmile smileOpen laugh",
                sad="frown",
                surprised="open gasp",
            ),
            "smiling",
        ),
        Attribute(
            "shape",
            "faceVariant",
            words(round="circle hexagon", square="squircle softSquare", wide="wide", tall="tall"),
            "round",
        ),
        Attribute("colour", "faceColor", BRIGHT, "yellow"),
        Attribute(
            "eyes",
            "eyesVariant",
            words(
                open="pupils bigPupils sparkle small uneven tallPupils lookSide lookDown lookUp",
                winking="wink",
                angry="angry",
                sleepy="sleepy calm",
                squinting="squint",
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
            words(thin="column stack lean", wide="loaf squat slug boulder"),
            "wide",
        ),
        Attribute(
            "colour",
            "bodyColor",
            words(
                orange="c4795c d99277",
                yellow="e0bd6a cf9f52",
                green="a8b37e 8ba06b",
                turquoise="83b0a4",
                blue="86a5c3",
                purple="9793bd ab8bbd",
                pink="cd8ea6",
                grey="b3a696",
            ),
            "green",
        ),
        Attribute(
            "eyes",
            "eyesVariant",
            {
                "mono": "one eye",
                "trio": "three eyes",
                **dict.fromkeys(CLAY_PAIRS, "two eyes"),
            },
            "two eyes",
            "with {}",
        ),
        Attribute(
            "top",
            "topVariant",
            words(
                horns="horns hornsSmall",
                ears="ears",
                antennae="antenna",
                spikes="spikes",
            )
            | {"loop": "a loop", "curl": "a curl", "peak": "a peak"},
            "ears",
            "with {}",
            absent="with a bare head",
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
            words(low="pair boulder", tall="five tower four fourLean fourBelly"),
            "tall",
        ),
        Attribute(
            "top",
            "capVariant",
            {
                "ball": "a ball",
                "egg": "an egg",
                "dome": "a dome",
                "cube": "a cube",
                "drop": "a drop",
            },
            "a ball",
            "topped by {}",
        ),
        Attribute(
            "upper stones",
            "stoneMidColor",
            words(
                red="c7877c",
                brown="b29472 9c9e72",
                green="78a68d 78a2aa",
                blue="829bc3",
                purple="a18fc4",
                pink="c87db0",
            ),
            "blue",
            "with {} stones",
        ),
        Attribute(
            "lower stones",
            "stoneDeepColor",
            words(
                red="7c483f",
                brown="675440 595a40",
                green="445f50 435d62",
                blue="3f5882",
                purple="614a86",
                pink="764566",
            ),
            "purple",
            "over {} stones",
        ),
    ),
)

SUBJECTS = (PLANET, LANDSCAPE, PLANT, MONSTER, ROBOT, FACE, CLAY, STONES)
