"""Words of the synthetic world: a hierarchy of interests, each told by three words.

Two areas of two realms of four groups of four topics. A topic is a group seen under a facet,
and the facets are what the world's pictures show. Knows no item.
"""

from __future__ import annotations

FACETS = ("winter", "neon", "forest", "desert")

AREAS = ("homemade cosy crafted", "outdoors adrenaline journey")

REALMS = (
    "kitchen recipe tasty",
    "studio artist handmade",
    "training athlete race",
    "travel map scenic",
)

GROUPS = (
    "baking dough oven",
    "coffee barista roast",
    "grilling smoker charcoal",
    "dessert sugar pastry",
    "pottery clay kiln",
    "painting canvas brush",
    "music chord melody",
    "photography lens shutter",
    "cycling pedal gravel",
    "running stride marathon",
    "climbing rope boulder",
    "paddling kayak river",
    "camping tent campfire",
    "trains railway station",
    "driving roadtrip engine",
    "sailing harbour mast",
)

# Two lines a group, one cell a facet.
_TOPICS = """
stollen gingerbread panettone | pizza calzone focaccia |
    sourdough rye chestnut | pita lavash naan |
mocha cinnamon toddy | espresso ristretto macchiato |
    pourover chemex aeropress | cezve cardamom arabica |
brisket chili stew | yakitori skewer satay |
    venison mushroom trout | kebab shawarma harissa |
pudding custard eggnog | gelato sorbet bubblegum |
    blueberry crumble honey | baklava dates halva |
porcelain snowflake celadon | lustre enamel decal |
    stoneware ashglaze leafprint | terracotta adobe pueblo |
monochrome fresco etching | graffiti airbrush mural |
    landscape pastel sketchbook | ochre palette impasto |
choir cello carol | synth techno vinyl |
    banjo folk fiddle | oud darbuka sitar |
aurora tripod exposure | street bokeh nightlife |
    macro wildlife fungi | drone dunes panorama |
fatbike studded ergometer | fixie velodrome criterium |
    singletrack downhill enduro | bikepacking tubeless saddlebag |
snowshoe treadmill thermals | sprint relay hurdles |
    trail orienteering fell | ultra hydration sandals |
icefall crampon piolet | gym campus hangboard |
    treetop zipline canopy | sandstone crack chimney |
drysuit iceberg seal | canal polo pontoon |
    canoe portage rapids | gorge oasis packraft |
igloo stove quinzhee | festival glamping lantern |
    hammock bushcraft whittling | bivouac stargazing caravan |
snowplough alpine funicular | metro tram maglev |
    logging viaduct timber | freight diesel boxcar |
rally icetrack skidpad | drift tuner dragstrip |
    overland winch mudder | buggy convertible motel |
icebreaker fjord arctic | regatta catamaran marina |
    lagoon mangrove dinghy | dhow tradewind lateen
"""

TOPICS = tuple(cell.strip() for cell in _TOPICS.split("|"))

_NOISE = """
    today best first ever my how why what new easy quick full part one two three four five
    day week year morning evening night hour minute live real top secret simple perfect
    ultimate beginner expert guide tips tricks review test challenge story diary update
    answer question behind again never always before after without inside beyond almost
    finally honest little big small great good better crazy calm slow fast cheap budget
    favourite friend family team home town city world local global classic modern old
    young lost found hidden open closed ready start finish break repair build make learn
    try fail win save share watch listen think know feel love need want wish plan dream
    moment memory season episode series special edition bonus extra mini mega super
"""

NOISE = tuple(_NOISE.split())


def levels() -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The words of areas, realms, groups and topics: four tuples of word tuples."""
    return tuple(
        tuple(tuple(words.split()) for words in level) for level in (AREAS, REALMS, GROUPS, TOPICS)
    )
