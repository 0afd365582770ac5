"""Tables by hand for `build.py`: corrections of the packages, and words that make good examples."""

# Countries. Names carry no article ("Netherlands", "United States"): the first token of the name is
# what is measured, and an article would be the same token in all of them.

# Without a seat of their own: uninhabited, run from elsewhere, or a city that is its own territory.
NO_CAPITAL = {"AQ", "BQ", "BV", "HK", "HM", "IO", "MO", "TF", "TK", "UM"}
DISSOLVED = {"AN", "CS"}
# Nobody lives there for good.
UNINHABITED = {"AQ", "BV", "GS", "HM", "IO", "TF", "UM"}

COUNTRY_NAMES = {
    "AX": "Åland Islands",
    "BL": "Saint Barthélemy",
    "BQ": "Caribbean Netherlands",
    "CV": "Cape Verde",
    "CW": "Curaçao",
    "NL": "Netherlands",
    "PN": "Pitcairn Islands",
    "PS": "Palestine",
    "RE": "Réunion",
    "ST": "São Tomé and Príncipe",
    "TL": "East Timor",
    "VA": "Vatican City",
    "VI": "United States Virgin Islands",
}

CAPITALS = {
    # Outdated, misspelt or without its accents in the package.
    "BR": "Brasília",
    "CM": "Yaoundé",
    "CO": "Bogotá",
    "CR": "San José",
    "CW": "Willemstad",
    "FO": "Tórshavn",
    "GU": "Hagåtña",
    "IS": "Reykjavík",
    "MV": "Malé",
    "NC": "Nouméa",
    "PW": "Ngerulmud",
    "PY": "Asunción",
    "ST": "São Tomé",
    "TG": "Lomé",
    "WF": "Mata-Utu|Mata Utu",
    # Several spellings.
    "AG": "St. John's|Saint John's",
    "EH": "Laayoune|El Aaiún",
    "GD": "St. George's|Saint George's",
    "GG": "St. Peter Port|Saint Peter Port",
    "JE": "St. Helier|Saint Helier",
    "KI": "South Tarawa|Tarawa",
    "MD": "Chisinau|Chișinău",
    "MM": "Naypyidaw|Nay Pyi Taw",
    "MN": "Ulaanbaatar|Ulan Bator",
    "UA": "Kyiv|Kiev",
    "US": "Washington|Washington DC",
    "YE": "Sanaa|Sana'a",
    # Several seats: the constitution and the government, or the branches of state, disagree.
    "BJ": "Porto-Novo|Cotonou",
    "BO": "Sucre|La Paz",
    "CI": "Yamoussoukro|Abidjan",
    "GQ": "Malabo|Ciudad de la Paz",  # The seat moves from the first to the second.
    "GS": "King Edward Point|Grytviken",
    "LK": "Colombo|Sri Jayawardenepura Kotte",
    "MS": "Plymouth|Brades",  # By law and, since the volcano buried it, in fact.
    "MY": "Kuala Lumpur|Putrajaya",
    "PS": "Ramallah|East Jerusalem|Jerusalem",
    "SZ": "Mbabane|Lobamba",
    "ZA": "Pretoria|Cape Town|Bloemfontein",
    # Moved or renamed since 2015: texts, and so the models, have the former name as well.
    "BI": "Gitega|Bujumbura",
    "KZ": "Astana|Nur-Sultan",
    # The city that the capital is a part of.
    "IN": "New Delhi|Delhi",
}

# Parts of a country that have a name and a capital of their own but no country code.
CONSTITUENT_CAPITALS = {
    "Ascension Island": "Georgetown",
    "Bonaire": "Kralendijk",
    "England": "London",
    "Northern Ireland": "Belfast",
    "Saba": "The Bottom",
    "Scotland": "Edinburgh",
    "Sint Eustatius": "Oranjestad",
    "Wales": "Cardiff",
}

CURRENCIES = {
    "BA": "mark|marka",
    "BY": "ruble|rouble",
    "CN": "yuan|renminbi",
    "HT": "gourde",  # CLDR has the US dollar too, which is no legal tender there.
    "MN": "tugrik|tögrög",
    "PL": "zloty|złoty",
    "RU": "ruble|rouble",
    "SZ": "lilangeni|emalangeni|rand",
    "TO": "pa'anga",
    "ZW": "dollar|ZiG|gold",  # Zimbabwe Gold beside the US dollar since 2024.
    # Replaced since 2015: texts, and so the models, have the former one as well.
    "BG": "euro|lev",
    "HR": "euro|kuna",
    "LT": "euro|litas",
}

# Countries on two continents, the one with most of their people first; one whose code is wrong in
# the package; and the country that is a continent where Oceania is not counted as one.
CONTINENTS = {
    "AM": "Asia|Europe",
    "AU": "Oceania|Australia",
    "AZ": "Asia|Europe",
    "CC": "Asia|Oceania",
    "CX": "Asia|Oceania",
    "CY": "Asia|Europe",
    "EG": "Africa|Asia",
    "GE": "Asia|Europe",
    "ID": "Asia|Oceania",
    "KZ": "Asia|Europe",
    "RU": "Europe|Asia",
    "TL": "Asia",
    "TR": "Asia|Europe",
}

# Verbs.

# The packages name several forms, or none that is right. The form that texts of today use most
# stands first.
PAST_FORMS = {
    "awake": "awoke|awaked",
    "befall": "befell",
    "beget": "begot|begat",
    "behold": "beheld",
    "bend": "bent",
    "bias": "biased|biassed",
    "blend": "blended",
    "bless": "blessed|blest",
    "burn": "burned|burnt",
    "chide": "chided",
    "clothe": "clothed|clad",
    "control": "controlled",
    "daydream": "daydreamed|daydreamt",
    "dial": "dialed|dialled",
    "dive": "dived|dove",
    "dream": "dreamed|dreamt",
    "dwell": "dwelt|dwelled",
    "facet": "faceted|facetted",
    "fly": "flew",
    "forbid": "forbade",
    "fuel": "fueled|fuelled",
    "gild": "gilded|gilt",
    "grind": "ground",
    "hamstring": "hamstrung",
    "hang": "hung|hanged",
    "heave": "heaved|hove",
    "kidnap": "kidnapped",
    "kneel": "knelt|kneeled",
    "lean": "leaned|leant",
    "leap": "leaped|leapt",
    "learn": "learned|learnt",
    "light": "lit|lighted",
    "mow": "mowed",
    "occur": "occurred",
    "outsell": "outsold",
    "overcome": "overcame",
    "overeat": "overate",
    "overhang": "overhung",
    "overlay": "overlaid",
    "overpay": "overpaid",
    "override": "overrode",
    "overspend": "overspent",
    "overtake": "overtook",
    "overthink": "overthought",
    "overwrite": "overwrote",
    "panel": "paneled|panelled",
    "parallel": "paralleled|parallelled",
    "pay": "paid",
    "plead": "pleaded|pled",
    "prepay": "prepaid",
    "program": "programmed",
    "rebuild": "rebuilt",
    "redo": "redid",
    "redraw": "redrew",
    "refer": "referred",
    "regrow": "regrew",
    "reinstall": "reinstalled",
    "relay": "relayed",
    "retake": "retook",
    "rethink": "rethought",
    "rewrite": "rewrote",
    "ricochet": "ricocheted|ricochetted",
    "shine": "shone|shined",
    "shrink": "shrank|shrunk",
    "sink": "sank|sunk",
    "ski": "skied",
    "slay": "slew|slayed",
    "slink": "slunk",
    "smell": "smelled|smelt",
    "sneak": "sneaked|snuck",
    "speed": "sped|speeded",
    "spell": "spelled|spelt",
    "spill": "spilled|spilt",
    "spoil": "spoiled|spoilt",
    "spotlight": "spotlighted|spotlit",
    "spring": "sprang|sprung",
    "stay": "stayed",
    "stink": "stank|stunk",
    "strive": "strove|strived",
    "swap": "swapped|swopped",
    "tear": "tore",
    "thrive": "thrived|throve",
    "undergo": "underwent",
    "undertake": "undertook",
    "unfreeze": "unfroze",
    "wake": "woke|waked",
    "weave": "wove|weaved",
    "wind": "wound",
}

# Left out: "be" and the modals; verbs with a past like their present beside another one; one
# spelling with two verbs of different pasts (lie); archaic verbs and verbs whose past nobody is
# sure of.
DISPUTED_VERBS = """
    abide alight be beseech bet bid bide broadcast bust can cleave cost crow dare fit forbear
    forecast forego forgo gird inlay input inset joyride jell knit lie login may must need offset
    okay output preset puree quit rebind rebroadcast recast refit rend resend reset retread retrofit
    rid sate shed shoe spit stave sublet sunburn sweat telecast torpedo typecast wed wet will
    wrought
""".split()

# Left out: nouns and adjectives that the lexicon lists as verbs and hardly anyone uses so, and
# words that are not fit for an example (most of those of violence and of sex).
UNUSUAL_VERBS = """
    annexe assassinate attire backlog barb beard behead breast bugger bum candy carbonate chap cheek
    clue cock coke confederate corn crater craze crook crucify cuckold culture destruct dimple dis
    discontent disillusion disjoint disuse dole doll dome domicile ear ejaculate enslave exterminate
    fame fart fate fee fever fin flange fleck flog flour fondle forest fur gazette gel gender glove
    grain grandfather grope guillotine hoop horn hump impregnate indenture introvert invalid jade
    jag jaw jazz knight licence lid limb lip loft lust lynch maim malt manicure marble massacre mast
    masturbate molest murder mutilate nuance nut ornament outbreak outlay overdrive overlie oversize
    pal pasture pebble pedigree pee pervert pigment pillar pimp pip piss plume poop premier
    privilege prong prostitute psyche putt rape retard rim robe ruff salary scallop sculpture seam
    seduce slaughter slut soup spank stiff strangle sucker tee tenant tent tenure tier timber tin
    ting torture upturn vein wee whizz whore wick wood zipper
""".split()

# Spellings of one word, the American one last: it stands in column `lemma` of both rows. The two
# patterns in `build.py` (-ise, -our) need no line here.
SPELLINGS = """
    adviser advisor, analyse analyze, ax axe, catalogue catalog, centre center, despatch dispatch,
    enquire inquire, fulfil fulfill, manoeuvre maneuver, mould mold, plough plow, practise practice,
    programme program
"""

# Colored objects.

# Even, and mostly one token each in the vocabularies of the models.
COLORS = """
    red orange yellow green blue purple pink brown black white gray silver gold turquoise magenta
    teal
""".split()

# No name is part of another one, so that a question is about exactly one object.
OBJECTS = [
    " ".join(name.split())
    for name in """
    keychain, notebook, textbook, booklet, envelope, stapler, paperclip, pencil, crayon, eraser,
    mug, plate, bowl, spoon, bottle, jug, teapot, candle, lamp, mirror, pillow, blanket, towel,
    umbrella, wallet, necklace, bracelet, scarf, glove, sock, belt, shoe, button, ribbon, kite,
    drum, balloon, puzzle, bucket, basket, calculator, magnet, vase, toothbrush, headset, jacket,
    helmet, suitcase, guitar, cat toy, dog leash, sheet of paper, pair of sunglasses, teddy bear,
    fidget spinner, stress ball, phone charger, soap dish, picture frame, roll of tape
    """.split(",")
]
PLACES = ["floor", "table", "desk", "nightstand", "couch", "bed", "shelf", "bench"]
OPENINGS = ["I see", "you see", "there is"]

# Words.

# Plurals that no rule gives.
PLURALS = """
    alumnus alumni, analysis analyses, axis axes, bacterium bacteria, basis bases, bookshelf
    bookshelves, businessman businessmen, calf calves, cameraman cameramen, chairman chairmen, child
    children, clergyman clergymen, craftsman craftsmen, crisis crises, criterion criteria, diagnosis
    diagnoses, elf elves, fireman firemen, fisherman fishermen, foot feet, freshman freshmen,
    gentleman gentlemen, goose geese, grandchild grandchildren, gunman gunmen, half halves, horseman
    horsemen, housewife housewives, hypothesis hypotheses, knife knives, leaf leaves, life lives,
    loaf loaves, louse lice, madman madmen, man men, midwife midwives, mouse mice, nucleus nuclei,
    oasis oases, ox oxen, parenthesis parentheses, person people|persons, phenomenon phenomena, policeman
    policemen, salesman salesmen, shelf shelves, snowman snowmen, spokesman spokesmen,
    sportsman sportsmen, stimulus stimuli, thesis theses, thief thieves, tooth teeth, watchman
    watchmen, werewolf werewolves, wife wives, wolf wolves, woman women
"""
COMPARATIVES = {"bad": "worse", "far": "farther|further", "good": "better", "old": "older|elder"}
# Regular ones with a second spelling.
COMPARATIVE_SPELLINGS = {"dry": "drier|dryer"}

# Languages that are official in several countries; the country that the language is named after or
# comes from, which is shown first.
LANGUAGES = {
    "Albanian": "Albania",
    "Arabic": "Saudi Arabia",
    "Chinese": "China",
    "Croatian": "Croatia",
    "Dutch": "Netherlands",
    "English": "United Kingdom",
    "French": "France",
    "German": "Germany",
    "Greek": "Greece",
    "Italian": "Italy",
    "Korean": "South Korea",
    "Malay": "Malaysia",
    "Persian": "Iran",
    "Portuguese": "Portugal",
    "Quechua": "Peru",
    "Romanian": "Romania",
    "Russian": "Russia",
    "Samoan": "Samoa",
    "Serbian": "Serbia",
    "Spanish": "Spain",
    "Swahili": "Tanzania",
    "Swedish": "Sweden",
    "Tamil": "India",
    "Turkish": "Turkey",
}

# Countries where CLDR still counts a language that is not official any more.
FORMER_LANGUAGES = {("English", "Madagascar"), ("Arabic", "Israel")}

# Countries where CLDR counts a language only in a part of the country, or not yet: official in
# North Macedonia since 2019 and in Rwanda since 2017, national in DR Congo; the second language of
# the United States, and one of the world's largest peoples of Spanish speakers.
MORE_LANGUAGES = {
    ("Albanian", "North Macedonia"),
    ("Spanish", "United States"),
    ("Swahili", "Democratic Republic of the Congo"),
    ("Swahili", "Rwanda"),
}

# Countries whose names need an article in a sentence ("is spoken in the Netherlands"): both are right.
WITH_ARTICLE = {"Netherlands", "United Kingdom", "United States"}

# Words that are seldom nouns, name a brand or a person, or would distract by what they mean.
UNFIT_NOUNS = """
    addict arms assassin babe bastard bitch booze bore bra brew bum butt cam can cannabis casting
    champ chap choke climb cocaine combine condom convert covering cross cum dale dame das dat dildo
    dirk dive don douche down draw drug drugs drunk dwelling eats ex facing fag fellow felt frank
    freak gather gay gig grab grind groom hack hank herald heroin hold homosexual hooker idiot
    implement initiate intern internet jay jerk jimmy john kat kris lan lesbian lick main mare
    martin max meth mike mini miss moron morphine must nasdaq negro nerd nude opium pal ping poke
    pope prick privy pro prop punk racist rape rapist recording rib rig rip robin rogue round royal
    rum savage self setup sex shit shoot sin slave slut smith spoke stall stand still sub swallow
    tequila tom tommy tory treat trump virgin vodka ward whip whiskey whisky whore work works world
""".split()
UNFIT_ADJECTIVES = """
    common few flip game ill less little live meek much numb pink round sexy slack sound stable
    still stupid tan trim well wrong
""".split()

UNFIT_WORDS = """
    arsenal cemetery creepy grief hart invasion martial turner warfare
    able about above abuse addicted after again ago ahead alcohol alone alright anti anxiety apart
    armed aside ass away awful battery being billy blues born bout broken burst bush catholic christ
    christian chronic cocaine college colonel corpse cruel cult dad dealt death deceased defunct
    dick disaster divine drawn driven drunken due dying else enough entire entry ethnic evil extreme
    fallen federal fifth five folks former forth found four fourth frozen funds funeral gay given
    glad god gone grounds hell hello hip holy homeless horrible horror hundred i illegal illness
    incest insane jesus jewish joint just killed killer known latter lawn lee legs less letters
    likely lot many matt means mid mile mine minutes morgan mum muslim naked nazi next nobody none
    north nothing nowhere nuclear one online only other out overseas own oxford pacific past penis
    per pizza plus poison porn pregnant prior prison pro racial racism religion religion remains
    respect savings semi senate series several severe sex sexual sexy sir sorry south species
    suicide sure suspicion tall terrible terror than then there thing things thousand threat three
    today together tomorrow tonight torture traffic troops two unable under unlike upcoming upper
    usual vast very vice violence violent war west what when whole why yes yesterday afterward alien
    assault betting blood blonde bloody boob breast brutal bullshit colored crap cursed damned dead
    demon devil drug erotic evil fatal fucking ghetto grave gypsy hatred hostage hostile idle incest
    insult lethal lust mad maniac martyr massacre murder nasty nude obese panic patient plague pussy
    rabid rifle slave slum slutty spoken stalin stupid suicidal surgery survival toxic trauma tumor
    ugly vagina venom victim villain weapon wicked alliance army asylum cancer casualty crime
    criminal crisis enemy fleet gun jail killing military missile navy nuclear nursing penalty
    police poverty prayer republican royalty squad tactics trial vampire acting actual billion bros
    daily due eighth eleven eighteen fifteen fifty forty fourteen fourth hundred jury justice
    million nine ninth second seven seventh sixth sixty ten tenth thirty trillion twelve twenty
    twice yards zero amazon america atari boston disney euro facebook german google harvard hebrew
    irish islam italian latin london roman spanish welsh abortion affair alike anyway auto behind
    bobby done downtown equity feminist guilt khan lawsuit mere more now ore par pathetic poorly
    prey regime scandal sec selfish slavery sometime syndrome teenage terminal terry tobacco toilet
    tragedy tragic ultra viral warren wont wright yea addict alias ally anyway anime aye bbc bio bra
    bro bud cia com congress cum dad dam didnt dna dude easter edit ego era etc fbi folk fox fri ham
    ian ibm inc info intel iron jan jay jazz joe jun kim lol max med mon mrs nah nasa nato nba nfl
    non nor nsa okay pac pap pat pdf phd pic pre pub sat sec sis ski thai thu tie tue usa van vat
    vet wed wow yeah
""".split()

# What the three tables below say is checked against WordNet when the data are built.

# Pairs of opposite adjectives. Where a word has two opposites, the usual one comes first.
OPPOSITES = """
    absent present, abstract concrete, active passive, alive dead, amateur professional, ancient
    modern, artificial natural, asleep awake, automatic manual, back front, bad good, beautiful
    ugly, benign malignant, best worst, better worse, big small, big little, bitter sweet, black
    white, bold timid, bottom top, brave cowardly, careful careless, cheap expensive, clean dirty,
    closed open, cold hot, complex simple, constructive destructive, convex concave, cool warm,
    dangerous safe, dark light, bright dark, bright dull, deep shallow, defensive offensive,
    different same, easy difficult, easy hard, domestic foreign, dominant recessive, dry wet, early
    late, east west, eastern western, empty full, even odd, external internal, exterior interior,
    false true, far near, fast slow, fat thin, female male, feminine masculine, fertile sterile, few
    many, first last, foolish wise, former latter, fresh stale, frivolous serious, general specific,
    generous stingy, guilty innocent, happy sad, hard soft, harmful harmless, heavy light, high low,
    hollow solid, hopeful hopeless, horizontal vertical, humble proud, indoor outdoor, inner outer,
    inside outside, junior senior, large small, left right, liquid solid, literal figurative, long
    short, loose tight, lost found, loud quiet, loud soft, major minor, maternal paternal, maximum
    minimum, mental physical, mild intense, modern traditional, multiple single, naive
    sophisticated, narrow wide, nasty nice, negative positive, new old, noisy quiet, north south,
    northern southern, objective subjective, off on, old young, optimistic pessimistic, optional
    obligatory, painful painless, parallel perpendicular, past future, past present, permanent
    temporary, plural singular, polite rude, poor rich, powerful powerless, primary secondary,
    private public, qualitative quantitative, rising falling, rough smooth, rural urban, sacred
    profane, sharp dull, sharp blunt, smart stupid, smart dumb, sober drunk, sour sweet, spoken
    written, straight crooked, strong weak, sudden gradual, superior inferior, tall short, tame
    wild, tense relaxed, thick thin, tough tender, up down, upstairs downstairs, useful useless,
    valuable worthless, wrong right
"""
# Opposites in everyone's English that WordNet does not link.
NOT_IN_WORDNET = """
    amateur professional, ancient modern, big small, bitter sweet, bright dark, easy hard, happy
    sad, loud quiet, modern traditional, permanent temporary, polite rude, sharp blunt, smart dumb,
    sober drunk
"""

# Further right answers, after those above; they are not asked themselves. Not checked against WordNet.
MORE_OPPOSITES = """
    active inactive, alive deceased, ancient new, artificial real, artificial genuine, awake
    sleeping, back forward, bold shy, brave timid, bright dim, cheap costly, clean unclean, cold
    warm, complex easy, cool hot, cowardly courageous, dead living, different alike, different
    similar, different identical, difficult simple, domestic international, dominant submissive, dry
    moist, dull interesting, dumb intelligent, dumb clever, expensive inexpensive, far close, fat
    skinny, fat slim, fat lean, fertile barren, fertile infertile, foolish smart, foreign native,
    front rear, general particular, generous selfish, generous mean, good evil, happy unhappy,
    harmful beneficial, hot cool, humble arrogant, indoor outdoors, large little, liquid gas,
    literal metaphorical, little large, little much, loud silent, mild severe, modern old, narrow
    broad, natural unnatural, near distant, nice mean, noisy silent, obligatory voluntary, open
    shut, optional mandatory, optional compulsory, optional required, outdoor indoors, permanent
    impermanent, polite impolite, poor wealthy, powerful weak, professional unprofessional, proud
    ashamed, proud modest, rough gentle, sad glad, safe unsafe, serious funny, simple complicated,
    simple difficult, single double, single married, slow quick, smart foolish, sober intoxicated,
    straight curved, straight bent, stupid intelligent, stupid clever, timid brave, tough weak, true
    untrue, ugly pretty, warm cold, weak powerful, wild domestic, wise unwise, wrong correct
"""

ANIMALS = {
    "mammal": """
        antelope ape armadillo baboon badger bat bear beaver bison bobcat buffalo camel caribou cat
        cheetah chimpanzee chipmunk cougar cow coyote deer dingo dog dolphin donkey elephant elk
        ferret fox gazelle gibbon giraffe goat gorilla groundhog hamster hare hedgehog hippo horse
        hyena impala jackal jaguar kangaroo koala leopard lion llama lynx mammoth manatee mongoose
        monkey moose mouse mule orangutan orca otter ox panda panther pig platypus porcupine possum
        rabbit raccoon rat reindeer rhino rhinoceros sheep shrew skunk sloth squirrel tiger walrus
        weasel whale wolf wolverine wombat yak zebra
    """,
    "bird": """
        albatross blackbird bluebird buzzard chicken condor crow cuckoo dove duck eagle emu falcon
        finch flamingo goose grouse gull hawk hen heron hummingbird ibis kingfisher lark magpie
        mockingbird nightingale osprey ostrich owl parrot partridge peacock pelican penguin pheasant
        pigeon puffin quail raven robin rooster seagull sparrow starling stork swallow swan toucan
        turkey vulture woodpecker wren
    """,
    "fish": """
        anchovy barracuda carp catfish cod eel flounder goldfish haddock halibut herring mackerel
        marlin minnow perch pike piranha salmon sardine seahorse shark snapper stingray sturgeon
        swordfish trout tuna
    """,
    "insect": """
        ant bee beetle bumblebee butterfly cicada cockroach cricket dragonfly firefly flea fly
        grasshopper hornet ladybug locust louse mantis midge mosquito moth termite wasp weevil
    """,
    "reptile": """
        alligator anaconda boa chameleon cobra crocodile gecko iguana lizard python rattlesnake
        snake tortoise turtle viper
    """,
    "amphibian": "bullfrog frog newt salamander toad",
    "arachnid": "mite scorpion spider tarantula tick",
    "crustacean": "barnacle crab crayfish krill lobster prawn shrimp",
    "mollusk": "clam mussel octopus oyster slug snail squid",
}

# Examples of a category: a word that names a kind of it, or one of it.
EXAMPLES = {
    "amphibian": ANIMALS["amphibian"],
    "appliance": "refrigerator oven stove dishwasher freezer dryer microwave",
    "beverage": "water coffee tea milk juice beer wine soda lemonade cocoa cider",
    "bird": ANIMALS["bird"],
    "boat": "canoe ferry barge yacht kayak gondola rowboat tugboat sailboat motorboat",
    "body part": """
        head hand arm leg foot finger toe nose ear eye mouth shoulder knee elbow neck chest back
    """,
    "bone": "skull rib femur pelvis tibia jaw collarbone",
    "bread": "toast bun bagel muffin loaf pumpernickel",
    "building": """
        house hotel hospital school church library museum theater palace castle temple restaurant
        barn mosque cathedral skyscraper tavern greenhouse chapel monastery
    """,
    "cheese": "cheddar parmesan mozzarella brie gouda ricotta camembert",
    "color": """
        red blue green yellow orange purple pink brown black white gray violet scarlet crimson
    """,
    "continent": "Africa Asia Europe Australia Antarctica North_America South_America",
    "crime": """
        theft murder robbery fraud burglary kidnapping assault arson treason blackmail bribery
        perjury
    """,
    "crustacean": ANIMALS["crustacean"],
    "dance": "waltz tango ballet polka rumba samba",
    "day of the week": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "disease": """
        cancer diabetes flu influenza tuberculosis cholera pneumonia measles smallpox polio leprosy
        asthma hepatitis arthritis rabies plague chickenpox
    """,
    "dog": """
        poodle terrier bulldog collie retriever spaniel beagle greyhound corgi dalmatian husky
        bloodhound
    """,
    "emotion": """
        love anger fear joy happiness hate hatred sadness envy pride shame jealousy rage surprise
        disgust
    """,
    "fabric": """
        cotton silk wool velvet denim linen satin nylon lace flannel polyester felt tweed corduroy
    """,
    "fish": ANIMALS["fish"],
    "flower": """
        rose daisy tulip lily sunflower orchid poppy violet daffodil iris carnation marigold
        chrysanthemum
    """,
    "footwear": "shoe boot sandal slipper sneaker",
    "fruit": """
        apple banana orange grape lemon peach pear cherry strawberry mango pineapple plum lime
        grapefruit melon watermelon kiwi fig apricot raspberry blueberry blackberry papaya avocado
        cranberry pomegranate tangerine olive
    """,
    "furniture": "chair table bed desk sofa couch bench cabinet dresser wardrobe bookcase stool",
    "game": """
        chess poker football baseball golf tennis basketball checkers bingo soccer hockey rugby
        dominoes
    """,
    "gas": "oxygen hydrogen nitrogen helium air methane neon chlorine ozone argon propane",
    "gem": "diamond ruby emerald sapphire pearl opal topaz amethyst garnet jade",
    "grain": "wheat rice corn barley oat rye millet",
    "hat": "cap beret bonnet sombrero fedora",
    "herb": "basil mint parsley thyme sage rosemary oregano dill cilantro",
    "insect": ANIMALS["insect"],
    "jewelry": "ring necklace bracelet earring brooch",
    "language": """
        English French Spanish German Italian Russian Chinese Japanese Arabic Portuguese Greek Latin
        Hebrew Dutch Korean Swedish Polish Turkish Hindi
    """,
    "mammal": ANIMALS["mammal"],
    "meat": "beef pork chicken ham lamb bacon veal turkey mutton steak venison sausage",
    "metal": """
        gold silver iron copper tin lead aluminum zinc nickel mercury platinum titanium steel
        uranium brass bronze
    """,
    "mollusk": ANIMALS["mollusk"],
    "month": """
        January February March April May June July August September October November December
    """,
    "musical instrument": """
        piano guitar violin drum trumpet flute cello saxophone clarinet harp organ trombone banjo
        tuba harmonica bassoon oboe accordion bagpipe xylophone
    """,
    "nut": "almond walnut pecan cashew hazelnut chestnut acorn",
    "organ": "heart liver lung kidney stomach skin brain eye ear pancreas spleen gallbladder",
    "planet": "Earth Mars Venus Jupiter Saturn Mercury Uranus Neptune",
    "profession": """
        doctor teacher lawyer engineer nurse dentist architect accountant carpenter plumber
        electrician baker chef pilot surgeon journalist librarian scientist pharmacist
    """,
    "relative": """
        mother father brother sister son daughter uncle aunt cousin grandmother grandfather nephew
        niece grandson granddaughter
    """,
    "religion": "Christianity Islam Buddhism Hinduism Judaism Sikhism Taoism",
    "reptile": ANIMALS["reptile"],
    "road": "street highway avenue alley boulevard freeway interstate",
    "room": """
        kitchen bathroom bedroom classroom library office lobby ballroom dormitory nursery attic
    """,
    "science": """
        physics chemistry biology mathematics psychology astronomy geology economics sociology
        anthropology linguistics botany zoology ecology genetics
    """,
    "season": "spring summer autumn fall winter",
    "sense": "sight hearing smell taste touch",
    "shape": "circle square triangle oval rectangle cube sphere cone pyramid cylinder",
    "ship": "freighter tanker warship steamer battleship frigate destroyer",
    "spice": "cinnamon ginger nutmeg clove pepper saffron turmeric paprika",
    "sport": """
        football basketball baseball tennis golf soccer hockey swimming boxing rugby volleyball
        skiing gymnastics wrestling cycling rowing skating surfing badminton
    """,
    "tool": "hammer saw drill screwdriver wrench shovel knife rake axe chisel pliers hoe scissors",
    "toy": "doll kite ball teddy balloon",
    "tree": """
        oak pine maple palm elm birch cedar willow ash spruce fir poplar beech cypress eucalyptus
    """,
    "vegetable": """
        carrot potato tomato onion cabbage spinach broccoli lettuce pea bean celery pumpkin cucumber
        cauliflower eggplant asparagus radish turnip beet squash zucchini
    """,
    "vehicle": """
        car truck bus bicycle motorcycle train plane boat ship van taxi tractor helicopter ambulance
        wagon scooter rocket submarine jeep sled
    """,
    "weapon": """
        gun knife sword rifle bomb spear bow pistol missile dagger grenade cannon arrow lance
        revolver shotgun
    """,
    "writer": "novelist poet journalist playwright essayist biographer",
}
# Categories whose examples may be named in the plural too ("sandals"), or without a capital.
PLURAL_EXAMPLES = {"footwear"}
UNCAPITALIZED_EXAMPLES = {"planet": "Earth"}
# Where WordNet files the examples under another word than the category's usual name.
WORDNET_NAMES = {
    "beverage": "food",
    "boat": "vessel",
    "bone": "body part",
    "building": "artifact",
    "crime": "act",
    "disease": "illness",
    "emotion": "feeling",
    "flower": "plant",
    "hat": "clothing",
    "nut": "fruit",
    "organ": "body part",
    "profession": "person",
    "room": "artifact",
    "spice": "flavorer",
    "vehicle": "conveyance",
    "weapon": "artifact",
}
