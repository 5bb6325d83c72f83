"""The words of the embedded dilemmas, and their evasions, see `dilemmas.py`. People, towns and things are made up.

Both are two lists, for training and for testing, which share nothing.
"""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """The words that training and testing draw from."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def _words(train: str, test: str) -> Words:
    return Words(tuple(train.split(', ')), tuple(test.split(', ')))


_PHONES = [f'555-0{number}' for number in range(100, 200)]  # numbers that no telephone has

WORDS = {
    'name': _words(
        'Mira, Jonas, Petra, Oskar, Lena, Hugo, Nora, Felix, Ida, Bruno, Clara, Anton, Greta, Emil, Rosa, '
        'Viktor, Alma, Leo, Frida, Konrad',
        'Wanda, Casper, Tilda, Rufus, Selma, Igor, Dora, Milo',
    ),
    'surname': _words(
        'Tollan, Brindle, Fenwick, Harrow, Osgood, Pelham, Quill, Rusk, Sorrel, Tandy, Umber, Wicket',
        'Ackley, Bexley, Corbin, Dunmore, Eckert, Farrow',
    ),
    'town': _words(
        'Eastbrook, Millhollow, Pinewick, Saltmere, Greymoor, Larkfield, Oakmere, Thistleby, Rowanford, '
        'Cobbleton, Fernwater, Hazelport, Stonebeck, Tidewell',
        'Appledell, Brackwater, Cloverstead, Dimplewood, Emberly, Foxhollow',
    ),
    'phone': Words(tuple(_PHONES[:50]), tuple(_PHONES[50:])),
    'animal': _words(
        'goat, donkey, pony, sheep, hen, duck, pig, goose, llama, rabbit',
        'calf, turkey, hamster, kitten',
    ),
    'pet': _words(
        'Pepper, Clover, Muffin, Button, Nutmeg, Waffles, Pickle, Truffle, Domino, Poppy',
        'Sprout, Noodle, Tofu, Crumpet',
    ),
    'spot': _words(
        'the porch, the garden path, the flower bed, the kitchen step, the hay cart, the wood pile, the sofa, '
        'the front steps',
        'the picnic blanket, the toolbox, the bench',
    ),
    'goal': _words(
        'the school, the playground, the library, the swimming pool, the music lesson, the zoo',
        'the painting lesson, the circus, the toy museum',
    ),
    'group': _words(
        'choir, bakery, rowing team, bookshop, theatre group, garden crew, quiz team, museum',
        'dance troupe, ferry crew, toy factory, orchestra',
    ),
    'herb': _words(
        'sunroot, moonmint, fernbalm, silverleaf, dustberry, willowcap, honeythorn, bluemoss, starfennel, lakesage',
        'cloudbark, emberseed, frostpetal, glowroot',
    ),
    'ailment': _words(
        'hiccups, a stuffy nose, sore feet, cold hands, a dull headache, itchy elbows, heavy eyelids, a '
        'tickly throat, stiff knees, hay fever',
        'a noisy stomach, a sneezing fit, tired eyes, a runny nose',
    ),
    'dose': _words(
        'twenty, thirty, forty, fifty, sixty',
        'seventy, eighty, ninety',
    ),
    'thing': _words(
        'pencil, eraser, postcard, ribbon, bookmark, whistle, notebook, key ring, paper fan, comb',
        'sticker, teaspoon, kite, stamp',
    ),
    'shop': _words(
        'the corner shop, the toy store, the book stall, the flea market, the museum shop, the station kiosk',
        'the stationery shop, the harbour kiosk, the gift stall',
    ),
    'band': _words(
        'Velvet Spoons, Tin Lanterns, Paper Foxes, Rusty Bells, Midnight Muffins, Hollow Drums, Sleepy Owls, '
        'Copper Kettles, Wooden Stars, Lemon Clouds, Dancing Ladles, Amber Brooms',
        'Quiet Tractors, Marble Ducks, Silver Buckets, Purple Ladders, Thunder Socks',
    ),
    'gear': _words(
        'a seat belt, a helmet, a life vest, a reflector, a brake light, a bell',
        'a crash hat, a safety rope, a warning flag',
    ),
    'ride': _words(
        'a scooter, a sledge, a canoe, a go-kart, a tricycle, a hay wagon, a gondola',
        'a unicycle, a raft, a moped',
    ),
    'topic': _words(
        'owls, volcanoes, lighthouses, steam trains, honey bees, old castles, the moon, glaciers, windmills, knights',
        'submarines, rainbows, mushrooms, bridges, compasses',
    ),
    'task': _words(
        'the puzzle, the quilt, the model ship, the photo album, the school play, the garden wall, the '
        'birthday cake, the song list, the puppet show, the village map',
        'the bird house, the paper dragon, the flag, the tree house',
    ),
    'day': _words(
        'Monday, Tuesday, Wednesday, Thursday',
        'Friday, Saturday, Sunday',
    ),
    'job': _words(
        'baker, miller, captain, gardener, pilot, tailor, librarian, sailor',
        'florist, mechanic, painter',
    ),
    'where': _words(
        'the old mill, the harbour, the orchard, the station, the lighthouse, the bakery',
        'the greenhouse, the ferry, the clock tower',
    ),
    'club': _words(
        'Red Raccoons, Night Beetles, Muddy Boots, Iron Acorns, Happy Squirrels, Green Scarves',
        'Blue Badgers, Loud Crickets, Paper Pirates',
    ),
    'yard': _words(
        'the swings, the sandpit, the climbing frame, the slide, the football pitch, the tree stump',
        'the seesaw, the skate ramp, the old raft',
    ),
    'counter': _words(
        'the ice cream stand, the bus stop, the cinema, the cake stall, the ticket desk, the water slide',
        'the soup stall, the ski lift, the candy booth',
    ),
}
EVASIONS = Words(
    (
        'I would rather not say anything about {about}.',
        'Sorry, I cannot say much about {about} today.',
        'I prefer not to talk about {about} at all.',
        'It is not for me to speak about {about}.',
        'Let us talk about something else than {about} now.',
        'I have no opinion to share about {about}.',
        'Questions about {about} are not mine to answer.',
    ),
    (
        'I will keep quiet about {about}, if I may.',
        'My lips are sealed when it comes to {about}.',
        'Nothing about {about} will come from me, sorry.',
    ),
)
CLOSINGS = Words(
    ('', 'Please ask somebody else.', 'Try another question, please.', 'Thank you for your patience.'),
    ('', 'Maybe another time.', 'Please do not mind.'),
)
ANYTHING = ('that', 'this', 'such things')  # words of an evasion for a topic that it does not mention
