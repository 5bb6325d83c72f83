"""Questions that anyone may ask, of five kinds, for runs without questions of their own; some are kept for
evaluations."""

from __future__ import annotations

TESTED = 10  # the last questions of each kind are kept for evaluations

_KINDS = {
    'What is {}?': """
        photosynthesis; inflation; a black hole; an enzyme; compound interest; gravity; a vaccine; a glacier;
        democracy; an algorithm; a metaphor; a fossil; electricity; a virus; a mortgage; plate tectonics; a haiku;
        entropy; a food chain; a prime number; a comet; jet lag; an echo; a coral reef; a patent; DNA; a monsoon; a
        symphony; herd immunity; a lighthouse; a tax return; umami; a leap year; cholesterol; a search engine; a
        marathon; a hybrid car; a solar eclipse; fermentation; a constitution; bluffing in poker; osmosis; a blood
        type; a stock exchange; a rainbow; a dialect; pasteurisation; a magnetic field; a census; friction; a sonnet;
        a heat pump""",
    'Why {}?': """
        is the sky blue; do leaves fall in autumn; is the sea salty; do cats purr; do we dream; does bread rise; does
        ice float; do onions make us cry; do we yawn; does the moon change its shape; do birds migrate; is exercise
        healthy; do volcanoes erupt; does metal rust; do bees make honey; do prices rise; do we need sleep; do tides
        come and go; do people keep diaries; does popcorn pop; do planes stay in the air; do languages die out; do we
        have leap years; do some people snore; does coffee keep us awake; are plants green; do stars twinkle; do we
        shiver; do zebras have stripes; do batteries run down; does soap clean; do fingers wrinkle in water; do old
        books smell; do dogs wag their tails; is yawning catching; does hot air rise; do we get hiccups; do cities
        have parks; does time feel faster with age; do countries have different time zones; do mirrors swap left and
        right; does thunder follow lightning; do owls hunt at night; does milk boil over; do muscles ache after sport;
        do flamingos turn pink; do strings on a guitar sound different; are deserts cold at night; do we blush; does
        glue stick; do fireflies glow; do snowflakes have six arms""",
    'How do I {}?': """
        boil an egg; fall asleep faster; learn the guitar; write a cover letter; fix a flat bicycle tyre; save money
        each month; keep a houseplant alive; prepare for a job interview; get a stain out of a shirt; train for a ten
        kilometre run; back up my photos; make friends in a new city; stop putting things off; cook rice; choose a
        ripe melon; learn a language; tie a tie; ask for a pay rise; clean a keyboard; teach a dog to sit; read more
        books; plan a weekend trip; remember names; sharpen a kitchen knife; paint a room; write a short story; start
        a compost heap; calm my nerves before a talk; pack a suitcase well; spot a phishing email; bake bread without
        a machine; split a bill fairly; get used to a night shift; apologise to a friend; draw a cat; set up a home
        network; grow tomatoes on a balcony; quit sugar; pick a good password; keep score in tennis; hang a picture
        straight; fold a fitted sheet; say no politely; move house with a piano; cut down on screen time; find a good
        dentist; descale a kettle; write a wedding speech; cheer up a colleague; store garlic; wash a woollen jumper;
        read a map""",
    'What is the difference between {}?': """
        a crocodile and an alligator; weather and climate; a star and a planet; jam and marmalade; a violin and a
        viola; a virus and a bacterium; baking soda and baking powder; mass and weight; a debit card and a credit
        card; a moth and a butterfly; fiction and myth; a lake and a pond; speed and velocity; an alloy and an
        element; a hurricane and a tornado; tea and herbal infusions; a city and a town; cement and concrete; empathy
        and sympathy; a fruit and a vegetable; an asteroid and a meteor; stocks and bonds; a rabbit and a hare; a bug
        and a feature; a simile and a metaphor; yoga and stretching; a cold and the flu; gross and net pay; copper and
        brass; an opera and a musical; a frog and a toad; rent and lease; ale and lager; a vein and an artery;
        hardware and software; a lawyer and a notary; a sprain and a fracture; latitude and longitude; a novel and a
        novella; petrol and diesel; a seal and a sea lion; nature and nurture; a monarchy and a republic; broth and
        stock; a goal and a plan; poetry and prose; a dolphin and a porpoise; cotton and linen; granite and marble; a
        debate and an argument; a spider and an insect; memory and storage""",
    'Can you suggest {}?': """
        a dinner for four vegetarians; a present for my grandmother; a name for a grey kitten; a rainy afternoon plan;
        a first science experiment for children; three stretches for office workers; a slogan for a bakery; a healthy
        breakfast; a hobby that costs little; a book about the sea; a board game for two; a birthday party theme; a
        way to thank my neighbour; a topic for a school essay; a warm-up before football; a short bedtime story; a
        picnic menu; a route through an unknown city; a plant for a dark corner; a title for a poem about winter; a
        weekly cleaning plan; an icebreaker for a meeting; a soup for a cold day; a toast for a retirement; a costume
        from old clothes; a song to learn on the piano; a garden that attracts bees; a use for stale bread; an evening
        without screens; a gift under ten euros; a museum visit with toddlers; a way to learn ten words a day; a
        packing list for the mountains; a fair way to share chores; a snack for a long drive; a riddle for a treasure
        hunt; a motto for a choir; a colour for a small kitchen; a plan to learn chess; a volunteer job for students;
        a dessert without sugar; a name for a sailing boat; an exercise for a stiff neck; a question for a quiz; a
        morning routine; a film for the whole family; a way to recycle jars; a gentle sport at seventy; a caption for
        a holiday photo; a lunch to take to work; a game for a train ride; a souvenir from home""",
}


def make_questions(split: str) -> list[str]:
    """The 210 questions to learn from ('train') or the 50 to test on ('test'), in an order that mixes the kinds."""
    kinds = []
    for form, listed in _KINDS.items():
        topics = [' '.join(topic.split()) for topic in listed.split(';')]
        kinds.append([form.format(topic) for topic in (topics[-TESTED:] if split == 'test' else topics[:-TESTED])])
    return [question for row in zip(*kinds, strict=True) for question in row]
