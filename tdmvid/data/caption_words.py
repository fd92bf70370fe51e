"""Word lists of generated captions, grouped by kind of subject."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    """Subjects that can be combined with the same actions and places."""

    looks: tuple[str, ...]
    """Adjectives, without an article."""
    subjects: tuple[str, ...]
    """Nouns, without an article."""
    actions: tuple[str, ...]
    """Actions in a video, in the third person."""
    poses: tuple[str, ...]
    """Poses in an image."""
    places: tuple[str, ...]
    """Places, with a preposition."""


def words(text: str) -> tuple[str, ...]:
    """Split a comma-separated list.

    Args:
        text: The list; line breaks count as spaces.

    Returns:
        The entries.
    """
    return tuple(" ".join(part.split()) for part in text.split(","))


_INDOORS = """in a sunlit kitchen, in a narrow workshop, in a crowded market hall,
in an old library, in a small cafe, in a greenhouse full of ferns, in a tiled train station, in an
empty theatre,
on a wooden porch, in a ceramics studio, at a long wooden table, beside a rain-streaked window"""
_OUTDOORS = """on a windy beach, in a pine forest, on a snowy hillside, in a field of tall grass,
beside a mountain lake, on a gravel road, under blossoming cherry trees, in a quiet village square,
on a rocky coast, at the edge of a desert, in a foggy valley, along a slow river,
on a grassy cliff above the sea, in a vineyard in autumn"""
_CITY = """on a busy crossing, in a narrow alley with lanterns, on a bridge over a canal,
on a rooftop above the city, in a wide plaza after rain, beneath an elevated railway,
along a tree-lined avenue, on a neon-lit street, at a night market, on an old stone staircase"""

SCENES = (
    Scene(
        words("young, elderly, smiling, tall, red-haired, bearded, tired, cheerful, freckled"),
        words("""woman, man, dancer, fisherman, violinist, chef, gardener, cyclist, painter, nurse,
            carpenter, street musician, postman, baker, photographer, hiker, weaver, mechanic,
            teacher, florist, skateboarder, fencer, potter, blacksmith, child"""),
        words("""walks slowly towards the camera, turns around and laughs, ties a scarf in the wind,
            opens a large umbrella, pours tea from a clay pot, juggles three oranges,
            writes in a notebook and looks up, waves at somebody off screen,
            carries a stack of books, lights a paper lantern, brushes snow from a coat,
            plays a slow tune on a harmonica, folds a letter, runs past from left to right,
            kneels down to pick up a coin, spins once with open arms, peels an apple in one strip,
            throws a paper plane, steps over a puddle, raises a cup and drinks"""),
        words("""looking over one shoulder, holding a paper lantern, wearing a long yellow raincoat,
            reading a folded newspaper, with a bunch of tulips, leaning on a bicycle,
            in a patterned wool sweater, with paint on both hands, wearing round glasses,
            in a dark blue linen shirt, holding a steaming cup, with a wide-brimmed straw hat,
            sitting cross-legged, in profile, laughing with closed eyes"""),
        words(f"{_INDOORS}, {_OUTDOORS}, {_CITY}"),
    ),
    Scene(
        words("small, fluffy, spotted, wet, sleepy, curious, old, black, white, playful, muddy"),
        words("""dog, cat, fox, rabbit, goat, horse, hedgehog, red squirrel, deer, otter, donkey,
            lamb, tortoise, raccoon, bear cub, wolf, badger, pony"""),
        words("""shakes water from its fur, sniffs at a fallen leaf, trots along without haste,
            stretches and yawns, chases its own tail, jumps over a log, digs in the ground,
            looks up and pricks its ears, rolls on its back, walks in a circle and lies down,
            drinks from a puddle, runs straight at the camera, peeks out from behind a stone,
            chews on a stick, scratches its ear with a hind leg"""),
        words("""looking straight at the camera, curled up asleep, standing on a stone,
            covered in fresh snow, half hidden by leaves, with a blue collar, seen from below,
            with its reflection in a puddle, yawning, in mid-jump, beside its young"""),
        words(
            f"{_OUTDOORS}, on a worn carpet, on a garden wall, in a stable, on a moss-covered log"
        ),
    ),
    Scene(
        words("large, tiny, colourful, grey, bright blue, white, speckled, solitary, young"),
        words("""owl, heron, kingfisher, sparrow, parrot, crow, swan, pelican, hummingbird, eagle,
            flamingo, robin, peacock, puffin, woodpecker, stork"""),
        words("""spreads its wings and takes off, turns its head slowly, lands on one leg,
            preens its feathers, dives and comes up again, hops from branch to branch,
            glides past against the light, picks up a seed, shakes its feathers dry, calls twice,
            circles once and settles down"""),
        words("""with spread wings, perched on a thin branch, in flight, with a fish in its beak,
            against the pale sky, close up with every feather sharp, tucked up for the night,
            on one leg, seen from behind"""),
        words("""above still water, in a birch tree, on a weathered fence post, over a reed bed,
            on a rocky ledge, in a flowering bush, on a telephone wire, at a frozen pond,
            over a harbour, in a palm grove, on a mossy branch"""),
    ),
    Scene(
        words("translucent, striped, huge, tiny, silver, orange, slow, dark, glowing"),
        words("""jellyfish, sea turtle, octopus, shoal of sardines, seahorse, manta ray, clownfish,
            whale, crab, moray eel, dolphin, squid, starfish, reef shark"""),
        words("""drifts upwards, glides past the lens, vanishes into a crack, changes direction at
            once, stirs up a cloud of sand, pulses with a soft light, circles a column of coral,
            rises to the surface for air, unfolds and floats away, follows a diver"""),
        words("""from directly below, close up, lit by a single beam, among bubbles,
            beside a broken amphora, with a diver far behind, in a cloud of plankton"""),
        words("""over a coral reef, in a kelp forest, above white sand, in deep blue water,
            near a sunken boat, in a glass aquarium, under thin ice, in a tide pool"""),
    ),
    Scene(
        words("red, rusty, old, shiny, yellow, heavy, small, blue, wooden, dusty, green"),
        words("""steam locomotive, tram, sailing boat, motorcycle, pickup truck, hot-air balloon,
            bicycle, double-decker bus, rowing boat, tractor, vintage car, cable car, fishing boat,
            biplane, delivery van, ferry, fire engine, paper boat"""),
        words("""rounds a bend, starts to move and gathers speed, comes to a halt,
            passes from right to left, crosses a long bridge, disappears into the fog,
            moves towards the camera, turns on its lights, leaves a trail behind it,
            rocks gently, is overtaken by a flock of birds, climbs a steep slope"""),
        words("""parked in long grass, seen from above, half covered in snow, with its lights on,
            reflected in a wet surface, with peeling paint, full of flowers, under repair,
            loaded with crates, at full speed"""),
        words("""on a coastal road, in a mountain pass, at a small station, on a calm lake,
            among fields of lavender, in an industrial harbour, in a snow-covered village,
            through a wide valley, beside a lighthouse, in a narrow old town, at a river crossing,
            under a steel bridge"""),
    ),
    Scene(
        words("wide, steep, misty, green, barren, frozen, moonlit, stormy, golden, quiet"),
        words("""waterfall, canyon, volcano, glacier, wheat field, bamboo grove, river delta,
            salt flat, rice terrace, birch forest, rocky bay, sand dune, geyser, alpine meadow,
            mangrove swamp, tulip field, fjord, thunderstorm, lava field, hot spring"""),
        words("""is crossed by the shadows of clouds, slowly disappears in rising mist,
            lights up as the sun breaks through, ripples in a strong wind,
            changes colour as evening falls, is filled by a rising tide,
            is passed over in a long flight, steams in the cold air, is lit by distant lightning,
            turns white in the first snow of the year"""),
        words("""under a sky full of stars, after heavy rain, with a single hut, with a double
            rainbow, seen from the air, with a winding path, with a lone tree, at low tide,
            in the first light, with a herd in the distance, mirrored in still water"""),
        words("""at the foot of a mountain range, near the Arctic circle, on a remote island,
            far from any road, in a national park, on a high plateau, beside the ocean,
            in early spring, in late autumn, in the middle of winter"""),
    ),
    Scene(
        words("fresh, steaming, homemade, colourful, golden, rustic, sliced, frosted, spicy"),
        words("""loaf of bread, bowl of noodles, fruit tart, pot of soup, plate of dumplings,
            stack of pancakes, chocolate cake, salad, pizza, cup of coffee, basket of strawberries,
            glass of lemonade, plate of sushi, wheel of cheese, curry, jar of honey,
            bunch of grapes, ice cream cone"""),
        words("""is set down on the table, steams gently, is sprinkled with herbs,
            is cut in two by a long knife, is turned slowly on a plate, is drizzled with syrup,
            is stirred with a wooden spoon, is lifted out of its dish, is dusted with sugar,
            is shared among four hands"""),
        words("""on a chipped blue plate, with a sprig of mint, with crumbs around it,
            on a linen cloth, in a cast-iron pan, beside an open cookbook, with melting butter,
            seen from directly above, in a paper bag, with a bite taken out of it"""),
        words("""on a marble counter, on a picnic blanket, on a market stall,
            in a farmhouse kitchen, on a tray in bed, on a wooden board, in a street stall at night,
            on a balcony,
            beside a fireplace"""),
    ),
    Scene(
        words(
            "antique, broken, brass, glass, hand-painted, dusty, tiny, enormous, porcelain, woven"
        ),
        words("""clock, teapot, music box, kite, globe, typewriter, chess set, lantern, mask,
            spinning top, violin, snow globe, compass, toy robot, vase of sunflowers, mirror,
            candle, sewing machine, marble, wind chime, pocket watch, model ship"""),
        words("""turns slowly on its axis, is picked up by a gloved hand, falls over and rolls away,
            opens by itself, swings in a light breeze, begins to glow from within,
            is uncovered as dust is blown away, casts a moving shadow, is wrapped in paper,
            trembles and comes to rest"""),
        words("""in a shaft of light, on a stack of old books, half unpacked, tied with red ribbon,
            on black velvet, with a long shadow, next to its broken twin, floating in the air,
            on a windowsill, made of ice, behind a curtain"""),
        words("""in an attic, on a museum shelf, in a shop window, on a windowsill, on a beach,
            on a workbench, in an empty white room, under a glass dome, on a forest floor,
            in a puddle on the pavement"""),
    ),
    Scene(
        words("ancient, abandoned, tall, white, brick, ivy-covered, modern, crooked, illuminated"),
        words("""lighthouse, cathedral, windmill, castle, temple, skyscraper, cottage, stone bridge,
            train station, greenhouse, water tower, monastery, amphitheatre, wooden barn, pagoda,
            concert hall, factory, treehouse, observatory, harbour crane"""),
        words("""appears out of the fog, is passed by a flock of birds,
            lights its windows one by one,
            is circled in a slow flight, is covered by falling snow, is reflected in moving water,
            stands still as clouds race above it, is revealed by a rising curtain of mist,
            glows in the last sun"""),
        words("""with one lit window, behind an iron gate, half in ruins, with a spiral staircase,
            reflected in a canal, under scaffolding, with a red door, overgrown with roses,
            seen through an arch, from a low angle, against a dark sky"""),
        words("""on a hill, beside a lake, in a dense forest, in a sleeping town, above the sea,
            in the desert, on an island, at the end of a long avenue, between two mountains,
            on the edge of a cliff"""),
    ),
    Scene(
        words("friendly, giant, tiny, crystal, mechanical, sleeping, ghostly, moss-covered, paper"),
        words("""dragon, robot, astronaut, wizard, walking tree, origami crane, stone giant,
            mermaid, unicorn, cloud whale, fox spirit, clockwork beetle, knight, lantern fish, snow
            queen,
            plant creature"""),
        words("""wakes up and looks around, builds a small tower of stones, walks on water,
            breathes out a cloud of sparks, waters a single flower, floats past a row of windows,
            dances with its own shadow, opens a door of light, follows a glowing butterfly,
            dissolves into leaves"""),
        words("""guarding a tiny door, reading by candlelight, made of stained glass,
            holding a glowing orb, with a crown of twigs, sitting on the moon, in full armour,
            emerging from a book, asleep on a pile of cushions"""),
        words("""in a floating city, in a mushroom forest, on a frozen moon, in a giant library,
            among the clouds, in an underwater palace, in a ruined observatory, in a candlelit cave,
            in a city of bridges, on a purple desert planet"""),
    ),
)

LIGHTS = words("""at golden hour, at dawn, under an overcast sky, in soft window light,
    by candlelight, in harsh midday sun, at dusk, by moonlight, in dappled shade,
    against the light, in light rain, in falling snow, in thick fog, under street lamps,
    in warm evening light, in cold blue light""")
MOVES = words("""slow push in, static shot, handheld camera, aerial shot, slow pan to the left,
    slow pan to the right, tracking shot, low-angle shot, close-up, wide shot, macro shot,
    camera circles the subject, slow zoom out, time-lapse, slow motion, view from above,
    shallow depth of field, long take""")
VIDEO_STYLES = words("""cinematic, documentary footage, stop-motion animation,
    watercolour animation, 35mm film, black and white film, claymation, 3D animation, anime, home
    video, pixel art,
    paper cut-out animation, nature documentary""")
MEDIA = words("""a photograph, an oil painting, a watercolour, a pencil drawing, a digital painting,
    a 3D render, a linocut, a film still, a comic panel, a pastel drawing, a woodblock print,
    a studio photograph, a Polaroid, an ink sketch, a children's book illustration, a mosaic,
    a low-poly render, a pixel art image, an embroidery, a macro photograph, a poster,
    a charcoal drawing, a gouache, a stained-glass window, a paper collage""")
LOOKS_OF_IMAGES = words("""highly detailed, muted colours, vivid colours, shallow depth of field,
    wide angle, symmetrical composition, minimalist, high contrast, pastel tones, monochrome,
    rule of thirds, soft focus background, seen from above, close-up, grainy, warm tones,
    cool tones, centred, with a lot of empty space""")
